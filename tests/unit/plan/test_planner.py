"""Plans of the shipped recipes, and what the command says of those that don't fit."""

import json
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.planner.rows import ROWS
from benchmarks.planner.run import WITHIN, figure, plan_row
from megatron_nft.config import load_config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.plan import __main__ as command
from megatron_nft.plan.__main__ import main
from megatron_nft.plan.buckets import largest_bucket_bytes
from megatron_nft.plan.hardware import GIB, HardwareError, load_machine
from megatron_nft.plan.planner import make_plan
from megatron_nft.plan.report import render
from megatron_nft.plan.suggestions import suggest
from megatron_nft.plan.workload import Assumptions

RECIPES = Path("launch/recipes")
PUBLISHED = [
    (f"{method}_qwen2.5_{size}_{nodes}x8h100.toml", size)
    for method in ("nft", "dapo", "rft")
    for size, nodes in (("32b", 16), ("math_7b", 4))
]
NFT_32B = RECIPES / PUBLISHED[0][0]


@pytest.fixture
def planned(models):
    def plan(*overrides, recipe=NFT_32B, model="32b", machine="H100", **assumptions):
        config = load_config(recipe, [f'model.path="{models[model]}"', *overrides])
        return make_plan(config, read_hf_config(models[model]), load_machine(machine), Assumptions(**assumptions))

    return plan


@pytest.mark.parametrize(("recipe", "model"), PUBLISHED)
def test_shipped_recipes_fit_their_nodes(recipe, model, planned):
    plan = planned(recipe=RECIPES / recipe, model=model)
    assert plan.fits, plan.problems
    assert plan.num_devices == 8 * (16 if model == "32b" else 4)


def test_a_tail_that_is_not_waited_for_is_said(planned):
    assert "does not wait" not in render(planned())
    kept = render(planned("rollout.tail=keep"))
    assert 'rollout.tail = "keep" does not wait for all of them, and is shorter' in kept


@pytest.mark.parametrize("nodes", [4, 1])
def test_recipes_of_a_mixture_fit_their_nodes(nodes, planned):
    plan = planned(recipe=RECIPES / f"nft_qwen3_30b_a3b_{nodes}x8h100.toml", model="30b_a3b")
    assert plan.fits, plan.problems
    assert plan.num_devices == 8 * nodes
    assert sum(rank.stage_elements for rank in plan.ranks) == pytest.approx(30.53e9, rel=1e-3)
    (train,) = [stage for stage in plan.stages if stage.name == "train"]
    assert any(name.startswith("expert-parallel") and seconds > 1 for name, seconds in train.parts.items())


@pytest.mark.parametrize(("recipe", "model"), PUBLISHED[2:])
def test_variants_differ_from_the_nft_recipe_in_name_and_method_only(recipe, model):
    variant = tomllib.loads((RECIPES / recipe).read_text())
    nft = tomllib.loads((RECIPES / f"nft_{recipe.split('_', 1)[1]}").read_text())
    method = recipe.split("_")[0]
    assert variant.pop("algorithm")["name"] == method and nft.pop("algorithm")["name"] == "nft"
    assert variant.pop("run")["name"] == nft.pop("run")["name"].replace("nft", method, 1)
    assert variant == nft


def test_memory_of_the_32b_recipe_by_hand(planned):
    train = planned().memory.worst("train").parts
    layer = 5120 * 96 * 128 // 8 + 3 * 5120 * 27648 // 8 + 2 * 5120 + 56 * 128 // 8
    stage = 32 * layer + 152_064 * 5120 // 8
    assert train["weights"] == pytest.approx(2 * stage, rel=1e-4)
    assert train["gradients"] == pytest.approx(4 * stage, rel=1e-4)
    assert train["optimizer"] == pytest.approx(12 * stage / 8, rel=1e-4)


def test_an_engine_by_hand(planned):
    engine = planned().engine
    layer = 5120 * 96 * 128 + 3 * 5120 * 27648
    assert engine.weight_bytes == pytest.approx(2 * (64 * layer + 2 * 152_064 * 5120) / 4)
    assert engine.kv_bytes_per_token == 2 * 2 * 64 * 8 * 128 / 4
    assert engine.kv_bytes == pytest.approx((0.7 * 79.1 - 3.0) * GIB - engine.weight_bytes)


def test_links_within_and_between_nodes():
    machine = load_machine("H100")
    within, one_nic = 450e9 * 0.75, 50e9 * 0.75
    assert machine.link_bytes_per_s(8, 1) == machine.link_bytes_per_s(2, 4) == within
    assert machine.link_bytes_per_s(2, 8) == machine.link_bytes_per_s(16, 8) == one_nic
    assert machine.link_bytes_per_s(4, 4) == 2 * one_nic  # two members in a node have two NICs
    assert machine.link_bytes_per_s(16, 1) == min(within, 8 * one_nic)


def test_a_sync_is_as_long_as_its_slowest_link(planned):
    split = ("cluster.placement=split", "actor.dp=4", "rollout.engines=16")
    sync = {s.name: s.parts for s in planned(*split).stages}["sync"]
    assert sync["broadcast between nodes"] == pytest.approx(2 * 32_763_876_352 / (50e9 * 0.75), rel=1e-3)


def test_what_does_not_fit_says_where_why_and_what_to_do(planned):
    (problem,) = planned("actor.tp=4", "actor.pp=4").problems
    assert problem.startswith("train: actor stage 0 needs ") and "of H100's 79.1, most of it activations" in problem
    assert 'set actor.recompute = "full"' in problem
    assert any("KV cache holds" in p for p in planned("rollout.tp=1", "rollout.engines=128").problems)


def test_colocated_engines_need_room_beside_the_weights(planned):
    """Gradients and the optimizer's state have left the devices when engines take their memory."""
    alone = [
        "actor.tp=1", "actor.dp=32", "actor.sequence_parallel=false", "actor.recompute=full"
    ]  # fmt: skip
    plan = planned(*alone, model="math_7b", recipe=RECIPES / PUBLISHED[1][0])
    assert plan.fits and not {"gradients", "optimizer"} & plan.memory.worst("rollout").parts.keys()
    plan = planned(*alone, "rollout.gpu_memory_fraction=0.9", model="math_7b", recipe=RECIPES / PUBLISHED[1][0])
    assert [p.split(":")[0] for p in plan.problems] == ["rollout"]


def test_engines_wake_beside_the_actors_weights_and_buckets(planned):
    """What else it held has been given back (cluster/turns.py); before that, the first bucket is gathered beside it."""
    plan = planned()
    hand_over, sync = (plan.memory.worst(phase).parts for phase in ("hand-over", "sync"))
    assert sync.keys() == {"weights", "CUDA and NCCL", "buckets", "engine asleep", "engine weights"}
    assert sync["engine weights"] == plan.engine.weight_bytes and sync["engine asleep"] == 2 * GIB
    assert {"gradients", "optimizer"} < hand_over.keys() and "engine weights" not in hand_over
    for phase in ("log-prob", "train", "hand-over"):
        assert plan.memory.worst(phase).parts["engine asleep"] == 2 * GIB
    assert "engine asleep" not in plan.memory.worst("rollout").parts, "there it is counted in the engine's share"
    split = planned("cluster.placement=split", "actor.dp=4", "rollout.engines=16").memory
    (stage, *_) = (usage.parts for usage in split.usages if usage.phase == "sync")
    assert "hand-over" not in split.phases and {"gradients", "optimizer"} < stage.keys()
    assert not {"engine asleep", "engine weights"} & stage.keys()


def test_no_suggestion_is_one_that_the_engines_waking_refuses(planned, models, monkeypatch):
    """Of large buckets two lie there and one is gathered: there are layouts that fit until then."""
    from megatron_nft.plan import suggestions

    tried = []
    monkeypatch.setattr(suggestions, "make_plan", lambda *given: tried.append(make_plan(*given)) or tried[-1])
    machine = replace(load_machine("H100"), memory_gib=60.0)
    overrides = [f'model.path="{models["32b"]}"', "rollout.tp=2", "rollout.engines=64", "weights.bucket_mib=12288",
                 "rollout.gpu_memory_fraction=0.62"]  # fmt: skip
    config = load_config(NFT_32B, overrides)
    found = suggest(make_plan(config, read_hf_config(models["32b"]), machine))

    def waking(plan):
        """Of the fullest stage: its weights, two buckets, a third as messages, the engine's weights, and 4.5 GiB."""
        tp, sizes = plan.config.actor.tp, [0.0]
        for pp_rank, rank in enumerate(plan.ranks):
            bucket = largest_bucket_bytes(plan.config, plan.hf, pp_rank)
            largest = max(largest_bucket_bytes(plan.config, plan.hf, stage) for stage in range(len(plan.ranks)))
            gathered = (1 + 1 / tp) * bucket if tp > 1 else 0
            sizes.append(2 * rank.elements + 2 * largest + gathered + plan.engine.weight_bytes + 4.5 * GIB)
        return max(sizes)

    refused = [plan for plan in tried if {problem.split(":")[0] for problem in plan.problems} == {"sync"}]
    assert refused and all(waking(plan) > 60 * GIB for plan in refused)
    assert found and all(waking(suggestion.plan) <= 60 * GIB for suggestion in found)


def test_suggestions_fit_and_the_nearest_comes_first(planned):
    plan = planned("actor.tp=4", "actor.pp=4")
    found = suggest(plan)
    assert found and all(s.plan.fits for s in found)
    assert all(s.plan.config.actor.world_size == 128 for s in found)
    assert [s.distance for s in found] == sorted(s.distance for s in found)
    assert found[0].changes == ("actor.recompute=full",)
    again = planned("actor.tp=4", "actor.pp=4", *found[0].changes)
    assert again.fits and again.seconds == found[0].plan.seconds


@pytest.mark.parametrize(
    ("change", "stage"),
    [("rollout.max_concurrent=16", "rollout"), ("verdict.workers=1", "verdict"), ("actor.recompute=full", "train"),
     ("weights.bucket_mib=16", "sync")],
)  # fmt: skip
def test_what_makes_a_stage_slower_makes_no_other(change, stage, planned):
    before, after = ({s.name: s.seconds for s in planned(*c).stages} for c in ((), (change,)))
    assert [name for name in before if after[name] > 1.01 * before[name]] == [stage]


def test_more_of_everything_takes_longer(planned):
    assert planned(answer_tokens=8000).seconds > planned(answer_tokens=4000).seconds
    assert planned(mixed_share=0.25).seconds > planned(mixed_share=1.0).seconds
    assert planned(machine="A100").seconds > planned().seconds > planned(machine="H200").seconds


def test_thousands_of_devices_take_no_time(planned):
    start = time.perf_counter()
    plan = planned("actor.dp=1024", "rollout.engines=4096", "train.groups_per_step=65536")
    assert plan.num_devices == 16384 and plan.fits
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "row", [row for row in ROWS if "Qwen3-3" in row.name or "pretraining" in row.name], ids=lambda row: row.name
)
def test_published_figures_stay_within_a_quarter(row, tmp_path):
    planned, (low, high) = figure(row, plan_row(row, tmp_path)), row.published
    assert (1 - WITHIN) * low < planned < (1 + WITHIN) * high


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    return status, *capsys.readouterr()


def test_the_command_prints_tables_and_json(capsys, models):
    status, out, _ = run(capsys, NFT_32B, "--model", models["32b"])
    assert status == 0 and out.rstrip().endswith("fits") and "bottleneck: rollout" in out
    assert "async step" not in out, "colocated"
    split = ["cluster.placement=split", "actor.dp=3", "rollout.engines=20"]
    status, out, _ = run(capsys, NFT_32B, "--model", models["32b"], *split)
    assert status == 0 and "async step" in out
    status, out, _ = run(capsys, NFT_32B, "--model", models["32b"], *split, "--json")
    plan = json.loads(out)
    seconds = {stage["name"]: stage["seconds"] for stage in plan["stages"]}
    trainer = seconds["log-prob"] + seconds["train"]
    without_tail = seconds["rollout"] - plan["rounds"]["tail_seconds"]
    assert without_tail < plan["asynchronous_seconds"] - seconds["sync"] < seconds["rollout"]
    assert trainer + seconds["sync"] <= plan["asynchronous_seconds"] < plan["seconds"]
    status, out, _ = run(capsys, NFT_32B, "--model", models["32b"], "actor.tp=4", "actor.pp=4", "--json", "--suggest")
    plan = json.loads(out)
    assert plan["asynchronous_seconds"] is None
    assert status == 1 and not plan["fits"] and plan["devices"] == 128
    assert {"overrides": ["actor.recompute=full"]}.items() <= plan["suggestions"][0].items()
    phases = {use["phase"] for use in plan["memory"]}
    assert phases == {"rollout", "log-prob", "train", "hand-over", "sync"}
    assert all(sum(use["parts"].values()) == pytest.approx(use["bytes"]) for use in plan["memory"])
    assert sum(s["seconds"] for s in plan["stages"]) == pytest.approx(plan["seconds"])


def test_the_command_refuses_with_a_sentence(capsys, models, tmp_path):
    assert run(capsys, NFT_32B)[0] == 2  # no folder models/Qwen2.5-32B
    status, _, error = run(capsys, NFT_32B, "--model", models["32b"], "--hardware", "H900")
    assert status == 2 and "no hardware 'H900'; known: A100, B200, H100, H200, cpu" in error
    status, _, error = run(capsys, NFT_32B, "--model", models["32b"], "--mixed-share", "0")
    assert status == 2 and "--mixed-share 0" in error


def test_the_examples_of_its_help_run(capsys, models):
    """As they are printed, but for the folder that has to be fetched."""
    lines = [line.split() for line in command.__doc__.splitlines() if line.startswith("    megatron-nft plan ")]
    assert len(lines) == 4
    for _, _, *arguments in lines:
        given = [str(models["32b"]) if argument == "models/Qwen2.5-32B" else argument for argument in arguments]
        status, out, error = run(capsys, *given)
        assert status == 0 and "fits" in out and not error, arguments


def test_own_hardware(capsys, models, tmp_path):
    table = "\n".join(
        f"{k} = {v}" for k, v in tomllib.loads(Path("megatron_nft/plan/hardware.toml").read_text())["H100"].items()
    )
    file = tmp_path / "mine.toml"
    file.write_text(f"[mine]\n{table.replace('memory_gib = 79.1', 'memory_gib = 20')}\n[efficiency]\nmatmul = 0.3\n")
    status, out, _ = run(capsys, NFT_32B, "--model", models["32b"], "--hardware", file)
    assert status == 1 and "128 x mine" in out
    assert load_machine("mine", file).efficiency.matmul == 0.3 and load_machine("mine", file).memory_bytes == 20 * GIB
    file.write_text("[mine]\nmemory_gib = 20\n")
    with pytest.raises(HardwareError, match="bf16_tflops is missing"):
        load_machine("mine", file)
    file.write_text(f"[mine]\n{table}\nspeed = 3\n")
    with pytest.raises(HardwareError, match="unknown key 'speed'"):
        load_machine("mine", file)


def test_the_quickstart_has_a_plan(capsys):
    status, out, _ = run(capsys, RECIPES / "quickstart.toml", "--suggest")
    assert status == 0 and "4 x cpu" in out and "layouts that fit" in out
