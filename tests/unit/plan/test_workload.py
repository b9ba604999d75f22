"""Lengths, microbatches, an engine's round, grading; numbers that the command refuses, and how it prints its own."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.planner import verdicts
from megatron_nft.plan.__main__ import main
from megatron_nft.plan.engine import Engine, generate
from megatron_nft.plan.hardware import HardwareError, load_machine
from megatron_nft.plan.report import plain, render, render_clusters
from megatron_nft.plan.workload import length_quantiles, microbatches_per_sequence
from tests.unit.plan.test_planner import planned, run  # noqa: F401  (a fixture)

QUICKSTART = "launch/recipes/quickstart.toml"
FLOATS = ("--answer-tokens", "--prompt-tokens", "--mixed-share")


@pytest.mark.parametrize("mean", [100, 1500, 3900, 4000])
def test_lengths_have_the_mean_and_the_cut(mean):
    lengths = length_quantiles(mean, 0.8, 4000)
    assert sum(lengths) / len(lengths) == pytest.approx(min(mean, 3996), rel=1e-3)
    assert max(lengths) <= 4000 and list(lengths) == sorted(lengths)


def test_long_sequences_leave_gaps_in_microbatches():
    assert microbatches_per_sequence((900.0,) * 100, 100, 4000) == 0.25
    assert microbatches_per_sequence((1901.0,) * 100, 100, 4000) == 1.0  # two of 2001 are too many
    assert microbatches_per_sequence((900.0, 2900.0), 100, 4000) == 0.5


ENGINE = Engine(
    weight_bytes=16e9, read_bytes=16e9, kv_bytes_per_token=1e5, kv_bytes=40e9, flops_per_token=16e9,
    hidden_bytes=8192, logits_bytes=4 * 128_000, layers=32, tp=1, memory_bytes=60e9,
)  # fmt: skip


def seconds(answers, places, lengths, prompts=1.0):
    return generate(
        ENGINE, load_machine("H100"), answers=answers, prompts=prompts, prompt_tokens=100.0, lengths=lengths,
        places=places,
    )  # fmt: skip


def test_one_answer_reads_the_weights_once_a_token():
    spent = seconds(1, 1, (1000.0,))
    assert spent["weights"] == pytest.approx(1000 * 16e9 / (3.35e12 * 0.8))
    assert spent["keys and values"] == pytest.approx(1000 * 600 * 1e5 / (3.35e12 * 0.8))  # 100 to 1100 tokens
    assert spent["prefill"] == pytest.approx(100 * 16e9 / (989e12 * 0.55))


def test_answers_side_by_side_share_the_reading_of_the_weights():
    assert seconds(8, 8, (1000.0,))["weights"] == pytest.approx(seconds(1, 1, (1000.0,))["weights"])
    assert seconds(8, 8, (1000.0,))["keys and values"] == pytest.approx(8 * seconds(1, 1, (1000.0,))["keys and values"])


def test_few_places_make_rounds():
    assert seconds(8, 2, (1000.0,))["weights"] == pytest.approx(4 * seconds(1, 1, (1000.0,))["weights"])
    # The next answer starts when one ends: 1 long one beside 3 short ones, one after the other.
    mixed = seconds(4, 2, (100.0, 100.0, 100.0, 300.0))
    assert mixed["weights"] == pytest.approx(300 * 16e9 / (3.35e12 * 0.8), rel=0.4)


def test_large_batches_are_bound_by_products():
    assert seconds(1, 1, (100.0,))["products"] == 0
    assert seconds(1024, 1024, (100.0,))["products"] > seconds(1024, 1024, (100.0,))["weights"]


@pytest.mark.parametrize("flag", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1", "0"])
def test_no_number_that_is_none_is_planned_with(flag, value, capsys):
    status, out, error = run(capsys, QUICKSTART, f"{flag}={value}")
    (line,) = error.splitlines()
    assert (status, out) == (2, "") and line.startswith(f"error: {flag} {float(value):g}") and "; give " in line


def test_every_float_of_the_command_is_among_them(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert set(re.findall(r"(--[\w-]+) [NP]\b", capsys.readouterr().out)) == {*FLOATS, "--gpus"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--prompt-tokens=129", "more than data.max_prompt_tokens = 128 allows; give a mean of 128 at most"),
        ("--answer-tokens=65", "more than rollout.max_answer_tokens = 64 allows"),
        ("--mixed-share=1e-300", "less than any run gets its steps of; give one of 0.001 to 1"),
    ],
)
def test_what_no_run_can_have_is_not_planned(given, said, capsys):
    status, _, error = run(capsys, QUICKSTART, given)
    assert status == 2 and said in error
    at_most = ["--prompt-tokens=128", "--answer-tokens=64", "--mixed-share=0.001"]
    assert run(capsys, QUICKSTART, *at_most)[0] == 0


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_hardware_has_such_numbers(value, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(f"[efficiency]\nmatmul = {value}\n")
    with pytest.raises(HardwareError, match=f"matmul = {value}; it must be a number above 0"):
        load_machine("H100", file)


@pytest.mark.parametrize(
    ("value", "printed"),
    [(10_312.4, "10,312"), (9_662.3, "9,662"), (12_345_678.9, "12,345,679"), (9_999.96, "10,000"), (458.694, "458.7"),
     (0.01707, "0.01707"), (0.264, "0.264"), (1e-6, "0.000001"), (100.0, "100"), (0.0, "0")],
)  # fmt: skip
def test_numbers_are_plain(value, printed):
    assert plain(value) == printed


def test_large_plans_have_no_powers_of_ten(planned):  # noqa: F811
    page = render(planned("train.steps=3200"))
    assert re.search(r"run of 3,200 steps: [\d,.]+ h, 9\d,\d{3} GPU-hours", page)
    plan = planned()
    plan.__dict__["saving"] = replace(plan.saving, num_bytes=14 * 10**12)
    assert "checkpoint every 10 steps: 14,000 GB" in render(plan)
    assert not re.search(r"\de[+-]\d", page + render(plan))


def test_one_of_a_thing_is_one(capsys):
    ones = ["train.steps=1", "train.evaluate_every=1", "checkpoint.every=1", "rollout.engines=1", "actor.tp=1",
            "train.updates_per_step=1", "train.groups_per_step=16", "actor.tokens_per_microbatch=1000000"]  # fmt: skip
    _, out, _ = run(capsys, QUICKSTART, *ones)
    assert not re.search(r"\b1 \w+s\b", out.replace(" 1 s ", " "))
    for words in ("run of 1 step:", "evaluation every step:", "checkpoint every step:", "| 1 engine of tp 1,",
                  "actor: 1 rank (", "1 update of 1 microbatch a rank"):  # fmt: skip
        assert words in out, words
    assert render_clusters([], 1).startswith("nothing fits on 1 device;")
    _, out, _ = run(capsys, QUICKSTART)
    assert (
        "run of 16 steps:" in out and "2 updates of" in out and "evaluation every 4 steps: 2,500 answers to 500" in out
    )


@pytest.mark.parametrize("more", [[], ["--answer-tokens", "25"], ["--answer-tokens", "60"]])
def test_grading_goes_on_beside_the_quickstarts_rollouts(more, capsys):
    """Measured: 0.0 of a step of 5.7 s, with answers of 25 tokens (benchmarks/quickstart)."""
    _, out, _ = run(capsys, QUICKSTART, "--json", *more)
    plan = json.loads(out)
    seconds = {stage["name"]: stage["seconds"] for stage in plan["stages"]}
    assert 0 < seconds["verdict"] < 0.05 and plan["seconds"] == pytest.approx(sum(seconds.values()))
    assert max(seconds, key=lambda name: seconds[name]) in ("train", "rollout")


def test_graders_that_are_slower_than_the_engines_are_waited_for(planned):  # noqa: F811
    """By hand: what is left of 500 answers a second when the rollouts end."""
    plan = planned("verdict.workers=1", "rollout.max_answer_tokens=64", answer_tokens=1)
    (verdict,) = (stage for stage in plan.stages if stage.name == "verdict")
    assert verdict.seconds == pytest.approx(plan.workload.answers / 500 - plan.round.seconds) and verdict.seconds > 10


def test_the_rates_groups_have_as_many_answers_that_differ():
    golds = [str(number) for number in range(40)]
    for differing in (4, 16):
        for group in verdicts.groups(golds, 5, differing):
            said = {rollout.text for rollout in group.rollouts}
            assert (len(group.rollouts), len(said)) == (16, differing)
            assert any(rf"\boxed{{{group.prompt.ground_truth}.0}}" in text for text in said)
            assert all(len(text) > verdicts.CHARACTERS for text in said)


def test_the_page_has_the_rate_that_plans_have():
    page = Path("benchmarks/planner/verdicts_2026-11-29.md").read_text()
    assert f"is {load_machine('H100').efficiency.verdicts_per_s}, " in page
