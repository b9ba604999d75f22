"""Facts of made-up nodes: what is the same is one row, what isn't names the node."""

from dataclasses import replace

import pytest

from megatron_nft.doctor.findings import fail, ok
from megatron_nft.preflight import checks
from megatron_nft.preflight.bandwidth import Bandwidth, pairs
from megatron_nft.preflight.facts import Facts, gather_facts

GOOD = Facts(
    hostname="n",
    seconds=1.0,
    findings=[ok("python", "3.12")],
    versions={"torch": "2.13.0", "recipe": "abc"},
    files={"model.safetensors": "5 bytes, 123"},
    verdict="",
    num_gpus=8,
    free_memory=900 << 30,
    free_disk=90 << 30,
)
NODES = [f"n{i}" for i in range(1, 17)]


def nodes(**odd):
    return {node: replace(GOOD, **odd.get(node, {})) for node in NODES}


def failures(findings):
    return [(f.check, f.value) for f in findings if f.status == "FAIL"]


def test_sixteen_equal_nodes_are_fit():
    facts = nodes()
    rows = [
        *checks.check_machines(facts), *checks.check_same(facts), *checks.check_room(facts),
        *checks.check_gpus(dict.fromkeys(NODES, 8), facts), *checks.check_verdicts(facts),
        *checks.check_clocks(dict.fromkeys(NODES, 0.001)),
    ]  # fmt: skip
    assert {row.status for row in rows} == {"ok"} and len(rows) == 8


@pytest.mark.parametrize(
    ("odd", "check", "words"),
    [
        ({"versions": {"torch": "2.12.0", "recipe": "abc"}}, "same versions", "torch is 2.12.0, elsewhere 2.13.0"),
        ({"versions": {"recipe": "abc"}}, "same versions", "torch is missing, elsewhere 2.13.0"),
        ({"versions": {"torch": "2.13.0", "recipe": "x"}}, "same versions", "recipe is x, elsewhere abc"),
        ({"files": {}}, "same files", "model.safetensors is missing"),
        ({"files": {"model.safetensors": "4 bytes, 1"}}, "same files", "4 bytes, 1, elsewhere 5 bytes"),
    ],
)
def test_what_differs_on_a_node_names_it(odd, check, words):
    (row,) = [row for row in checks.check_same(nodes(n7=odd)) if row.status != "ok"]
    assert (row.check, row.status, row.value) == (check, "FAIL", "n7") and words in row.reason


def test_a_node_that_cannot_read_the_recipe_is_not_named_twice():
    assert failures(checks.check_same(nodes(n7={"versions": {"torch": "2.13.0"}}))) == []


def test_what_doctor_finds_on_a_node_and_on_all():
    finding = fail("memory", "1 GiB free", "too little", "end other programs")
    assert failures(checks.check_machines(nodes(n3={"findings": [finding]}))) == [("memory", "n3: 1 GiB free")]
    everywhere = nodes(**{node: {"findings": [finding]} for node in NODES})
    assert failures(checks.check_machines(everywhere)) == [("memory", "all 16 nodes: 1 GiB free")]


def test_pins_may_differ_where_a_site_says_so_but_packages_may_not_be_missing():
    other = fail("versions", "torch 2.9.0", "requirements-gpu.txt pins 2.13.0", "pip install")
    none = fail("versions", "vllm is missing", "requirements-gpu.txt pins 0.32.0", "pip install")
    facts = nodes(**{node: {"findings": [other]} for node in NODES})
    assert failures(checks.check_machines(facts)) == [("versions", "all 16 nodes: torch 2.9.0")]
    lenient = list(checks.check_machines(facts, pins="warn"))
    assert [(row.status, row.value) for row in lenient[:1]] == [("warn", "all 16 nodes: torch 2.9.0")]
    assert lenient[-1].check == "machines" and lenient[-1].status == "ok"
    assert failures(checks.check_machines(nodes(n3={"findings": [none]}), pins="warn"))
    one = nodes(n3={"versions": {"torch": "2.9.0", "recipe": "abc"}})
    assert failures(checks.check_same(one)) == [("same versions", "n3")], "of each other they may not differ"


def test_gpus_clock_disk_and_grading():
    assert failures(checks.check_gpus({**dict.fromkeys(NODES, 8), "n2": 7}, nodes())) == [
        ("GPUs", "n2: Slurm gives 7, the driver shows 8; elsewhere 8")
    ]
    assert failures(checks.check_gpus(dict.fromkeys(NODES, 8), nodes(n2={"num_gpus": 7}))) == [
        ("GPUs", "n2: Slurm gives 8, the driver shows 7; elsewhere 8")
    ]
    (late,) = checks.check_clocks({**dict.fromkeys(NODES, 0.0), "n5": -3.0})
    assert late.status == "warn" and late.value == "n5: -3.0 s"
    assert failures(checks.check_room(nodes(n5={"free_disk": 1 << 30}))) == [
        ("free disk", "1 GiB at least, on n5, where temporary files go")
    ]
    assert failures(checks.check_verdicts(nodes(n5={"verdict": "all wrong"}))) == [("verdicts", "n5")]


def measured(within=300.0, between=150.0, **slow):
    return {
        node: Bandwidth(within=within, between=dict.fromkeys((0, 1), slow.get(node, between)), all_s=0.1)
        for node in NODES
    }


def test_a_slow_node_is_named():
    def found(**slow):
        rows = checks.check_bandwidth(measured(**slow), within_gb_s=200, between_gb_s=100)
        return [(row.status, row.check, row.value) for row in rows if row.status != "ok"]

    assert found() == []
    assert found(n9=40.0) == [("FAIL", "between nodes", "n9: 40.00 GB/s")]
    assert len(found(within=20.0)) == 16
    rows = checks.check_bandwidth(measured(n9=40.0), within_gb_s=0, between_gb_s=0)
    assert [(r.status, r.value) for r in rows if r.status != "ok"] == [("warn", "n9: 40.00 GB/s")]


@pytest.mark.parametrize("count", range(2, 18))
def test_every_node_meets_both_neighbours_and_none_twice_at_once(count):
    rounds = pairs(count)
    for together in rounds:
        members = [node for pair in together for node in pair]
        assert len(members) == len(set(members))
    met = [frozenset(pair) for together in rounds for pair in together]
    ring = {frozenset((i, (i + 1) % count)) for i in range(count)}
    assert set(met) == ring and len(met) == len(ring)


def test_one_node_has_no_neighbour():
    assert pairs(1) == []


def test_this_machine_tells_its_facts():
    facts = gather_facts("launch/recipes/quickstart.toml", [])
    assert facts.verdict == "" and facts.versions["recipe"] and facts.versions["torch"]
    assert " bytes, " in facts.files["tests/assets/quickstart/train.parquet"]
    assert "tests/assets/quickstart/model/config.json" in facts.files
    moved = gather_facts("launch/recipes/quickstart.toml", ["model.path=/nowhere"])
    assert any(f.check == "recipe" and f.status == "FAIL" for f in moved.findings) and moved.files == {}
