"""The share of mixed groups: of which steps it is counted, how soon it forgets, what a resumed run knows of it."""

import numpy as np
import pytest

from megatron_nft.groups.share import MixedShare, largest_share
from tests.unit.groups.queues import after_a_first_step, ask, grade, make_queue


def test_the_largest_share_that_fits():
    assert largest_share(0, 0) == 1.0
    assert largest_share(0, 2560) == pytest.approx(36 / 2596)
    assert 0.5 < largest_share(50, 100) < 0.8 and largest_share(100, 100) == 1.0
    seen = np.random.default_rng(0).binomial(512, 0.03, 100_000)
    assert min(largest_share(int(m), 512) for m in set(seen)) > 0.03, "too low once in a billion"


def test_the_share_is_of_earlier_steps_too():
    """All of the few groups of a step are mixed now and then: the next round has a margin all the same."""
    queue, _ = after_a_first_step("wait")
    queue.share = MixedShare.known(0.6, 10)
    grade(queue, [*queue.under_way.values()], 1)
    assert queue.take(2) is not None
    assert (queue.share.value, queue.share.of) == (pytest.approx((4 + 3) / 9), 9)
    queue.trained()
    again = make_queue(0)
    again.restore(queue.state_dict(), [], [])
    for each in (queue, again):
        each.trained()
        each.synced(2, set(), restarts=False)
        grade(each, ask(each), 2)
        assert each.take(3) is not None
        assert (each.share.value, each.share.of) == (pytest.approx((4 + 4 * 7 / 9) / 8), 8)


@pytest.mark.parametrize("tail", ["drop", "keep"])
def test_a_step_that_was_all_mixed_by_chance_leaves_the_next_a_margin(tail):
    queue, second = after_a_first_step(tail)
    queue.share = MixedShare.known(0.5, 16)
    grade(queue, second[:4], 1)
    assert queue.take(2) is not None
    queue.trained()
    queue.synced(2, set(), restarts=False)
    assert queue.share == MixedShare.known((4 + 8 * 0.5) / 12, 12)
    assert queue.num_missing() + len(queue.under_way) == 11, "4 of 2/3, and a margin"


def test_the_share_goes_on_where_it_was_within_a_step():
    queue = make_queue(1)
    grade(queue, ask(queue)[:5], 0)
    assert queue.take(1) is not None
    queue.trained()
    grade(queue, [*queue.under_way.values()], 0, mixed=False)
    grade(queue, ask(queue)[:2], 0, mixed=False)
    again = make_queue(1)
    again.restore(queue.state_dict(), queue.kept(), [*queue.under_way.values()])
    assert again.share == queue.share != MixedShare.known(queue.share.value, queue.share.of)
    for each in (queue, again):
        grade(each, [*each.under_way.values()], 0, mixed=False)
    assert again.share == queue.share


def test_a_step_that_is_taken_again_is_counted_once():
    """A stop between its taking and its training: the checkpoint holds its groups as not taken."""
    queue, whole = make_queue(1), make_queue(1)
    for each in (queue, whole):
        grade(each, ask(each)[:4], 0)
        grade(each, [*each.under_way.values()][:2], 0, mixed=False)
    assert queue.take(1) is not None
    again = make_queue(1)
    again.restore(queue.state_dict(), queue.kept(), [*queue.under_way.values()])
    for each in (again, whole):
        grade(each, [*each.under_way.values()][:1], 0, mixed=False)
        assert each.take(1) is not None
    assert again.share == whole.share == MixedShare.known(4 / 7, 7)


@pytest.mark.parametrize("tail", ["wait", "drop"])
def test_a_hard_step_is_soon_forgotten(tail):
    """Of many groups that a step needed few count beside the next ones, which need few."""
    queue, _ = after_a_first_step(tail)
    queue.share = MixedShare.known(0.1, 160)
    grade(queue, [*queue.under_way.values()], 1)
    assert queue.take(2) is not None and queue.share.of <= 27 and queue.share.value > 0.39


def test_a_checkpoint_of_before_knows_its_share():
    """Its queue had these two values, or only the first."""
    queue = make_queue(0)
    state = queue.state_dict()
    del state["share"]
    queue.restore(state | {"mixed_share": 0.25, "share_of": 10}, [], [])
    assert queue.share == MixedShare.known(0.25, 10)
    queue.restore(state | {"mixed_share": 0.25}, [], [])
    assert queue.share == MixedShare.known(0.25, 4)
