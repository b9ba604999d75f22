"""Rounds as the queue has them, tails, and what a run has beside its steps."""

from math import ceil, floor

import numpy as np
import pytest

from megatron_nft.config import load_config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.groups import queue
from megatron_nft.plan import rounds
from megatron_nft.plan.__main__ import main
from megatron_nft.plan.engine import play_round, without_tail
from megatron_nft.plan.hardware import load_machine
from megatron_nft.plan.planner import make_plan
from megatron_nft.plan.report import render, render_clusters
from megatron_nft.plan.rounds import sampling_rounds
from megatron_nft.plan.suggestions import fastest, suggest_clusters
from megatron_nft.plan.workload import Assumptions, length_quantiles
from tests.unit.groups.queues import SAMPLING, answered, make_prompt, make_queue
from tests.unit.plan.test_planner import NFT_32B
from tests.unit.plan.test_workload import ENGINE


@pytest.fixture
def planned(models):
    def plan(*overrides, **assumptions):
        config = load_config(NFT_32B, [f'model.path="{models["32b"]}"', *overrides])
        return make_plan(config, read_hf_config(models["32b"]), load_machine("H100"), Assumptions(**assumptions))

    return plan


@pytest.mark.parametrize("share", [1.0, 0.8, 0.5, 0.2, 0.05])
def test_a_step_asks_as_the_queue_does(share):
    """Once it knows the share from many steps, in which mixed groups came evenly."""
    planned, real = sampling_rounds(512, share), make_queue(0, 512, max_rounds=10)
    for step in range(1, 11):
        while real.take(step) is None:
            requests = real.begin([make_prompt(0)] * real.num_missing(), SAMPLING)
            outcomes = [answered(requests[0], step - 1, mixed=mixed) for mixed in (False, True)]
            for request in requests:
                number = request.request_id
                real.grade(number, outcomes[floor((number + 1) * share) - floor(number * share)])
        real.trained()
        real.synced(step, set(), restarts=False)
    assert real.num_missing() == pytest.approx(planned.first, rel=0.003)
    assert rounds.asked_for is queue.asked_for
    assert 10 * rounds.most_prompts(512) == real._num_allowed()


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_as_many_steps_need_a_second_round(share):
    planned, draw = sampling_rounds(512, share), np.random.default_rng(0)
    share_of = 2 * ceil(512 / share)
    estimates = draw.binomial(share_of, share, 20_000) / share_of
    asked = [rounds.asked_for(512, estimate, share_of) for estimate in estimates]
    again = np.mean(draw.binomial(asked, share) < 512)
    assert again == pytest.approx(planned.again, abs=0.01)
    assert 512 / share < planned.prompts < 1.15 * 512 / share + 40 / share


def test_a_share_at_which_the_run_would_end_is_said(planned):
    assert planned(mixed_share=0.03).warnings == ()
    plan = planned(mixed_share=0.02)
    (warning,) = plan.warnings
    assert warning.startswith("a step asks for 28,344 prompts at a mixed share of 0.02, and the run ends after 24,510 ")
    assert f"\nwarning: {warning}\nfits" in render(plan) and plan.to_dict()["warnings"] == [warning]
    assert "set rollout.max_sampling_rounds = 12 (it is 10)" in warning
    assert planned("rollout.max_sampling_rounds=12", mixed_share=0.02).warnings == ()
    assert planned("rollout.max_sampling_rounds=11", mixed_share=0.02).warnings


def test_a_method_that_learns_from_every_group_asks_for_no_more(planned):
    named = ["algorithm.name=w_reinforce", "algorithm.reduction=tokens"]
    plan = planned(*named, mixed_share=0.02)
    assert plan.workload.mixed_share == 1 and plan.workload.prompts == 512 and not plan.warnings
    assert planned("algorithm.name=nsr", "algorithm.reduction=tokens", mixed_share=0.5).workload.mixed_share == 0.5


def round_of(answers, places=8, lengths=(100.0, 200.0, 400.0, 800.0)):
    return play_round(
        ENGINE, load_machine("H100"), answers=answers, prompts=1.0, prompt_tokens=100.0, lengths=lengths, places=places
    )


def test_the_tail_begins_when_nothing_waits():
    alone = round_of(1)
    assert alone.tail_s == pytest.approx(alone.seconds - alone.parts["prefill"])
    assert round_of(8, lengths=(500.0,)).tail_s == 0, "all end together"
    many = round_of(400)
    assert 0 < many.tail_s < 0.1 * many.seconds


def test_engines_that_go_on_have_no_tail():
    lengths = length_quantiles(300.0, 0.8, 1000)
    kind = {"prompts": 32.0, "prompt_tokens": 100.0, "lengths": lengths, "places": 8}
    whole = play_round(ENGINE, load_machine("H100"), answers=512, **kind)
    steady = without_tail(ENGINE, load_machine("H100"), answers=512, **kind)
    assert whole.seconds - whole.tail_s < steady < whole.seconds - 0.3 * whole.tail_s


def test_evaluation_beside_rollouts_costs_its_tokens_and_no_tail(planned):
    evaluation = planned("train.evaluate_every=2").evaluation
    assert evaluation.prompts == 30 + 500 + 30 + 40 + 674 + 272
    assert evaluation.answers == 32 * 100 + 500 + 674 + 272
    assert 0 < evaluation.beside_s < 0.6 * evaluation.alone_s
    greedy = planned("evaluate.greedy=true", "evaluate.max_prompts=10").evaluation
    assert (greedy.prompts, greedy.answers) == (60, 3 * 10 * 33 + 3 * 10 * 2), "of each file"
    assert planned("data.held_out=[]", "evaluate.samples_of={}").evaluation is None
    waited_for = planned("evaluate.in_background=false").evaluation
    assert waited_for.beside_s == waited_for.alone_s
    split = planned("cluster.placement=split", "actor.dp=4", "rollout.engines=16")
    assert split.evaluation.beside_s == max(split.evaluation.alone_s - split.seconds_of("log-prob", "train"), 0)


def test_a_checkpoint_by_hand(planned):
    saving = planned().saving
    assert saving.num_bytes == 14 * 32_763_876_352
    assert saving.copy_s == pytest.approx(saving.num_bytes / 128 / 2.3e9)
    assert saving.write_s == pytest.approx(saving.num_bytes / 15e9)
    assert saving.seconds == saving.copy_s and planned("checkpoint.every=0").saving is None
    waiting = planned("checkpoint.in_background=false").saving
    assert waiting.seconds == waiting.copy_s + waiting.write_s


def test_a_start_by_hand(planned):
    """Two nodes read a stage each, once; the ranks of the other replicas get their shards from there."""
    start = planned().start
    assert start.read_bytes == pytest.approx(2 * 32_763_876_352, rel=1e-3)
    assert start.parts["weights from storage"] == pytest.approx(start.read_bytes / 2 / 5e9, rel=1e-3)
    assert 0 < start.parts["weights to the other replicas"] < 1
    assert start.parts["engines, after the ranks"] == 60
    split = planned("cluster.placement=split", "actor.dp=4", "rollout.engines=16").start
    assert split.parts["engines, beside the ranks"] < 60


def test_a_whole_run_is_the_sum_of_its_parts(planned):
    plan = planned("train.steps=100", "train.evaluate_every=30", "checkpoint.every=40")
    parts = plan.whole_run.parts
    assert parts["steps"] == pytest.approx(100 * plan.seconds)
    assert parts["evaluations"] == pytest.approx(4 * plan.evaluation.beside_s + plan.evaluation.alone_s)
    assert parts["checkpoints"] == pytest.approx(3 * plan.saving.copy_s + plan.saving.write_s)
    assert plan.whole_run.device_hours == pytest.approx(128 * sum(parts.values()) / 3600)
    assert plan.asynchronous_run is None
    split = planned("cluster.placement=split", "actor.dp=4", "rollout.engines=16")
    assert split.asynchronous_run.hours < split.whole_run.hours
    between = split.asynchronous_run.parts["evaluations"] / split.evaluation.alone_s
    assert between == pytest.approx(159 + 2), "each is waited for"


def test_other_clusters_fit_and_are_what_they_say(planned, models):
    plan = planned()
    found = suggest_clusters(plan, 64)
    assert {s.plan.config.cluster.placement for s in found} == {"colocated", "split"}
    assert all(s.plan.fits and s.plan.num_devices == 64 for s in found)
    seconds = [s.plan.seconds for s in found]
    assert seconds == sorted(seconds), "as the table says"
    table = render_clusters(found, 64)
    ahead = min((s for s in found if s.plan.asynchronous), key=lambda s: max(s.plan.asynchronous))
    assert f"{max(ahead.plan.asynchronous):.0f}  {' '.join(ahead.changes)}  (fastest asynchronous)" in table
    assert table.splitlines()[2].endswith("  (fastest)"), "and its step is the shortest"
    assert len({s.plan.config.rollout.tp for s in found}) > 1
    for each in (found[0], found[-1]):
        changes = [change.replace("None", "0") for change in each.changes]
        again = planned(*changes)
        assert again.fits and again.seconds == each.plan.seconds
    assert suggest_clusters(plan, ceil(0.5)) == [], "nothing fits on one device"


@pytest.mark.parametrize(("actor", "devices"), [(["actor.tp=1", "actor.dp=1", "actor.sequence_parallel=false"], 8),
                                                (["actor.tp=4", "actor.dp=8"], 64)])  # fmt: skip
def test_more_devices_than_the_actor_has_ranks_are_taken_by_turns_too(models, actor, devices):
    seven = NFT_32B.with_name("nft_qwen2.5_math_7b_4x8h100.toml")
    settings = [*actor, "cluster.placement=split", "rollout.engines=1", "rollout.tp=1"]
    config = load_config(seven, [f'model.path="{models["math_7b"]}"', *settings])
    hf, machine = read_hf_config(models["math_7b"]), load_machine("H100")
    found = suggest_clusters(make_plan(config, hf, machine, Assumptions()), devices)
    colocated = [s for s in found if s.plan.config.cluster.placement == "colocated"]
    assert colocated and all(s.plan.config.actor.world_size == devices for s in colocated)
    best = fastest(found)
    again = load_config(seven, [f'model.path="{models["math_7b"]}"', *settings, *best.changes])
    assert best in colocated and make_plan(again, hf, machine, Assumptions()).seconds == best.plan.seconds


def test_the_command_plans_the_recipe_on_other_devices(capsys, models):
    seven = NFT_32B.with_name("nft_qwen2.5_math_7b_4x8h100.toml")
    assert main([str(seven), "--model", str(models["math_7b"]), "--gpus", "8"]) == 0
    out = capsys.readouterr().out
    assert "8 x H100, " in out and "engines and placement on 8 devices" in out and "(fastest" in out
    for line in ("tail: in the last ", "evaluation every ", "checkpoint every 10 steps: ", "start: ", "run of "):
        assert f"\n{line}" in out, line
    assert main([str(NFT_32B), "--model", str(models["32b"]), "--gpus", "1"]) == 1
    assert capsys.readouterr().out.startswith("nothing fits on 1 device; ")
    assert main([str(NFT_32B), "--model", str(models["32b"]), "--gpus", "0"]) == 2
    assert "--gpus 0; give at least 1 device" in capsys.readouterr().err
