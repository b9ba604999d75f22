"""The played engines of benchmarks/scale take as long as the planner says, all at the same time."""

import asyncio

import numpy as np
import pytest

from benchmarks.scale.answers import Answers
from benchmarks.scale.engines import PlayedFleet
from megatron_nft.plan.engine import play_round
from megatron_nft.plan.hardware import load_machine
from megatron_nft.plan.workload import length_quantiles
from megatron_nft.rollout.api import Sampling, requests_of
from megatron_nft.types import Prompt
from tests.unit.plan.test_workload import ENGINE

NUM_ENGINES, PLACES, GROUP, LONGEST, CALL_S = 4, 8, 4, 1000, 0.5
LENGTHS = length_quantiles(300.0, 0.8, LONGEST)


def requests(count):
    prompts = [
        Prompt(prompt_id=f"p/{number}", text="", token_ids_P=np.zeros(100, np.int32), ground_truth="1", data_source="")
        for number in range(count)
    ]
    return requests_of(prompts, Sampling(group_size=GROUP, temperature=1.0, max_answer_tokens=LONGEST, seed=0))


async def play(fleet, waiting):
    """As the stream does: an engine with room gets the next prompts, and is called again."""
    groups = {}

    async def drive(index):
        under_way = 0
        while True:
            given = [waiting.pop(0) for _ in range(min(len(waiting), PLACES - under_way))]
            under_way += len(given)
            if not under_way:
                return
            finished, _ = await fleet.call(index, "advance", ("rollouts", given, [], CALL_S))
            under_way -= len(finished)
            groups.update(finished)

    await asyncio.gather(*map(drive, range(NUM_ENGINES)))
    return groups


def test_a_round_takes_as_long_as_planned():
    answers = Answers(LENGTHS, LONGEST, mixed_share=0.5, alike=0.0)
    fleet, asked = PlayedFleet(NUM_ENGINES, ENGINE, load_machine("H100"), PLACES, answers), requests(200)
    groups = asyncio.run(play(fleet, list(asked)))
    assert sorted(groups) == [request.request_id for request in asked]
    planned = play_round(
        ENGINE, load_machine("H100"), answers=50 * GROUP, prompts=50.0, prompt_tokens=100.0, lengths=LENGTHS,
        places=PLACES,
    )  # fmt: skip
    assert fleet.clock == pytest.approx(planned.seconds, rel=0.15)
    assert fleet.busy_s > 0.9 * NUM_ENGINES * fleet.clock, "all at the same time"


def test_answers_are_what_a_run_needs():
    """Of the planner's lengths, each prompt's alike; half of the prompts mixed; the same whichever engine answers."""
    answers, asked = Answers(LENGTHS, LONGEST, mixed_share=0.5), requests(400)
    lengths = np.array([answers.lengths(request) for request in asked])
    assert lengths.mean() == pytest.approx(300, rel=0.1) and lengths.max() <= LONGEST
    assert np.log(lengths).mean(1).std() > 1.2 * np.log(lengths).std() / np.sqrt(GROUP)
    mixed = 0
    for request in asked:
        group = answers.group(request, [20] * GROUP, 3)
        rights = ["\\boxed{1}" in rollout.text for rollout in group.rollouts]
        mixed += 0 < sum(rights) < GROUP
        assert {len(rollout.token_ids_A) for rollout in group.rollouts} == {20}
    assert 0.4 < mixed / len(asked) < 0.6
