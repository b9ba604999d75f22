"""Experts go from an engine's process to a rank's past the driver, through Ray: whole, late, dropped, or lost."""

import os

import numpy as np
import pytest
import ray

from megatron_nft.cluster.elsewhere import InRay, Shelf, bring, hand_over, leave, lend
from megatron_nft.groups.file import load_groups, save_groups
from megatron_nft.groups.queue import Kept
from megatron_nft.types import MicroBatch, Prompt, Rollout, RolloutGroup, TrainSequence, Verdict

pytestmark = pytest.mark.e2e

LENGTH = 3000
"""Tokens: an answer's experts are more than the 100 KB that Ray sends along with a reference."""
PROMPT = Prompt(prompt_id="p/0", text="", token_ids_P=np.arange(5, dtype=np.int32), ground_truth="", data_source="toy")


def experts(answer):
    return np.random.default_rng(answer).integers(0, 64, (LENGTH + 4, 6, 8), dtype=np.uint8)


def group(*answers):
    rollouts = [
        Rollout(
            text="", token_ids_A=np.full(LENGTH, a, np.int32), engine_logprobs_A=np.zeros(LENGTH, np.float32),
            truncated=False, policy_version=0, experts_R=experts(a),
        )
        for a in answers
    ]  # fmt: skip
    return RolloutGroup(prompt=PROMPT, rollouts=tuple(rollouts), verdicts=(Verdict(kind="right"),) * len(rollouts))


class Engine:
    """As cluster/fleet.py has it."""

    def __init__(self):
        self.shelf = Shelf()

    def advance(self, *groups):
        return [self.shelf.put(group(*answers)) for answers in groups]

    def hand_over(self, keys):
        arrays = self.shelf.hand_over(keys)
        return arrays if len(arrays) > 1 else arrays[0]

    def num_kept(self):
        return len(self.shelf._arrays)

    def die(self):
        os._exit(9)


class Rank:
    """As cluster/ranks.py has it."""

    def experts(self, share):
        return [s.experts_R for update in bring(share) for m in update for s in m.sequences]


@pytest.fixture
def engine(shared):
    process = ray.remote(Engine).options(num_cpus=0).remote()
    yield process
    ray.kill(process)


@pytest.fixture(scope="module")
def rank(shared):
    process = ray.remote(Rank).options(num_cpus=0).remote()
    yield process
    ray.kill(process)


def share_of(rollouts):
    sequences = [
        TrainSequence(
            token_ids_T=np.concatenate([PROMPT.token_ids_P, r.token_ids_A]), num_prompt_tokens=5, verdict=1.0,
            correct_rate=0.5, engine_logprobs_A=r.engine_logprobs_A, experts_R=r.experts_R,
        )
        for r in rollouts
    ]  # fmt: skip
    return [[MicroBatch(sequences=(s,)) for s in sequences], [MicroBatch(sequences=())]]


def asked_of(rank, rollouts):
    """Through the driver, as a share: by a reference to what holds references."""
    return ray.get(rank.experts.remote(ray.put(share_of(rollouts))))


def test_a_rank_gets_what_the_engine_had_and_the_driver_never_does(engine, rank, tmp_path):
    answered = ray.get(engine.advance.remote((1, 2), (3,)))
    found = [hand_over(g, engine) for g in answered]
    rollouts = [r for g in found for r in g.rollouts]
    assert all(isinstance(r.experts_R, InRay) and r.experts_R.shape == (LENGTH + 4, 6, 8) for r in rollouts)
    assert ray.get(engine.num_kept.remote()) == 0
    ray.wait([r.experts_R.reference for r in rollouts], num_returns=3, fetch_local=False)
    engine.die.remote()  # what has been handed over is not its own any more
    for answer, rows in enumerate(asked_of(rank, rollouts), 1):
        np.testing.assert_array_equal(rows, experts(answer))
    # A checkpoint holds them, and a run that goes on lends them again.
    kept = [Kept(request_id=i, group=g, is_ready=True, is_reported=True) for i, g in enumerate(found)]
    save_groups(kept, tmp_path / "groups.npz")
    again = [lend(item.group) for item in load_groups(tmp_path / "groups.npz", {"p/0": PROMPT})]
    rollouts = [r for g in again for r in g.rollouts]
    assert all(isinstance(r.experts_R, InRay) for r in rollouts)
    for answer, rows in enumerate(asked_of(rank, rollouts), 1):
        np.testing.assert_array_equal(rows, experts(answer))
        assert rows.dtype == np.uint8


def test_a_group_that_nobody_wants_leaves_nothing_behind(engine):
    (answered,) = ray.get(engine.advance.remote((1, 2)))
    assert ray.get(engine.num_kept.remote()) == 2
    leave(answered, engine)
    assert ray.get(engine.num_kept.remote()) == 0


def test_experts_that_died_with_their_engine_have_no_rows(engine, rank):
    first, second = ray.get(engine.advance.remote((1, 2), (3, 4)))
    first = hand_over(first, engine)
    ray.wait([r.experts_R.reference for r in first.rollouts], num_returns=2)
    engine.die.remote()
    second = hand_over(second, engine)  # asked of a process that has ended
    found = asked_of(rank, [*first.rollouts, *second.rollouts])
    assert [rows.shape for rows in found] == [(LENGTH + 4, 6, 8)] * 2 + [(0, 6, 8)] * 2
    np.testing.assert_array_equal(found[1], experts(2))
    assert second.rollouts[0].experts_R.load().shape == (0, 6, 8)
