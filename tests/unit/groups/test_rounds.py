"""Synchronous runs: how many prompts a round asks for, when a step begins, what becomes of a round's last answers."""

from dataclasses import replace
from math import exp, lgamma, log

import numpy as np
import pytest

from megatron_nft.groups.queue import NoMixedGroups
from megatron_nft.rollout.api import Request
from megatron_nft.types import Verdict
from tests.unit.groups.queues import SAMPLING, after_a_first_step, answered, ask, grade, ids, make_prompt, make_queue


def test_without_staleness_a_round_is_whole_before_another_is_asked_for():
    queue = make_queue(0)
    first = ask(queue)
    assert len(first) == 4 and queue.num_missing() == 0
    grade(queue, first[:2], 0)
    grade(queue, first[2:3], 0, mixed=False)
    assert queue.take(1) is None and queue.num_missing() == 0
    grade(queue, first[3:], 0)
    second = ask(queue)
    assert len(second) == 3, "one is missing, and three of four were mixed: 1.3, and a margin"
    grade(queue, second[::-1], 0)  # in whatever order they get ready
    taken, late = queue.take(1)
    assert (ids(taken.groups), ids(taken.graded), late) == ([0, 1, 3, 4], [*range(5)], [])
    assert taken.metrics["rollout/rounds"] == 2 and taken.metrics["rollout/groups_surplus"] == 2
    assert not any(name.startswith("async/") for name in taken.metrics)
    queue.trained()
    assert queue.num_missing() == 0 and queue.num_ready == 0, "the next step's policy is another"
    queue.synced(1, set(), restarts=False)
    assert queue.num_missing() == 9, "of 5 that it came to four were mixed: 5, and a margin"


def rounds_of(share, groups_per_step, steps=1000, seed=0):
    """Of a synchronous run whose groups are mixed with this probability, step by step; and its prompts a step."""
    queue, rng = make_queue(0, groups_per_step, max_rounds=10, num_steps=steps + 1), np.random.default_rng(seed)
    rounds, prompts = [], 0
    request = Request(request_id=0, prompt=make_prompt(0), seed_id="", sampling=SAMPLING)
    outcomes = [answered(request, 0, mixed=False), answered(request, 0)]
    for step in range(1, steps + 1):
        while (found := queue.take(step)) is None:
            requests = ask(queue)
            prompts += len(requests)
            for request, is_mixed in zip(requests, rng.random(len(requests)) < share, strict=True):
                queue.grade(request.request_id, outcomes[int(is_mixed)])
        rounds.append(found[0].metrics["rollout/rounds"])
        queue.trained()
        queue.synced(step, set(), restarts=False)
    return rounds, prompts / steps


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_a_step_of_a_synchronous_run_takes_one_round(share):
    """A second one would last its longest answer."""
    rounds, prompts = rounds_of(share, 64, steps=400)
    assert np.mean(rounds) <= 1.06 and prompts <= 1.4 * 64 / share


@pytest.mark.night("the published size at five shares")
@pytest.mark.parametrize("share", [0.8, 0.65, 0.5, 0.35, 0.2])
def test_rounds_of_a_published_step(share):
    rounds, prompts = rounds_of(share, 512, steps=200)
    print(share, np.mean(rounds), prompts * share / 512)
    assert np.mean(rounds) <= 1.05 and prompts <= 1.12 * 512 / share


@pytest.mark.parametrize("groups_per_step", [8, 128])
def test_few_mixed_groups_do_not_end_a_run(groups_per_step):
    rounds, _ = rounds_of(0.031, groups_per_step, steps=10)
    assert max(rounds) < 10


@pytest.mark.parametrize("groups_per_step", [1, 8, 512])
def test_a_run_with_few_groups_a_step_is_as_patient(groups_per_step):
    """The chance that a step at a share of 0.03 ends the run, from the binomial distribution: one in 50 million."""
    tries, share = make_queue(0, groups_per_step, max_rounds=10)._num_allowed(), 0.03
    mean_log = [lgamma(tries + 1) - lgamma(k + 1) - lgamma(tries - k + 1) for k in range(groups_per_step)]
    chance = sum(exp(c + k * log(share) + (tries - k) * log(1 - share)) for k, c in enumerate(mean_log))
    assert chance < 2e-8


def sampled_until_it_ends(share, groups_per_step, seed=0):
    """Prompts of each round of a first step that ends the run, and what it says."""
    queue, rng, asked = make_queue(0, groups_per_step, max_rounds=10), np.random.default_rng(seed), []
    with pytest.raises(NoMixedGroups) as caught:
        while queue.take(1) is None:
            requests = ask(queue)
            asked.append(len(requests))
            for request, is_mixed in zip(requests, rng.random(len(requests)) < share, strict=True):
                queue.grade(request.request_id, answered(request, 0, mixed=bool(is_mixed)))
    return asked, str(caught.value)


def test_a_share_that_is_hopeless_ends_a_run_long_before_its_limit():
    """A round is at most four times what has been graded where by the share all that is left would hardly do."""
    asked, said = sampled_until_it_ends(0.0, 512)
    assert asked == [512, 2048], "of 24,510 that it might try"
    assert "0 of 2560 groups had right and wrong answers" in said
    assert "and the 21950 more that may be tried would not bring them (of 2560 groups" in said
    asked, said = sampled_until_it_ends(0.005, 512)
    assert asked[:2] == [512, 2048] and sum(asked) < 13_000 and "more that may be tried" in said
    asked, said = sampled_until_it_ends(0.018, 512)
    assert sum(asked) > 10_000, "near the limit only sampling tells"
    for groups_per_step in (64, 128):
        asked, said = sampled_until_it_ends(0.0, groups_per_step)
        assert sum(asked) < 0.5 * make_queue(0, groups_per_step, max_rounds=10)._num_allowed(), asked


@pytest.mark.parametrize(("max_staleness", "tail"), [(1, "wait"), (0, "drop"), (0, "keep")])
def test_groups_that_are_mixed_and_late_are_waited_for(max_staleness, tail):
    """Wrong answers are long ones: what is graded first is not a sample of what is under way."""
    queue = make_queue(max_staleness, 512, max_rounds=10, tail=tail)
    while len(queue.under_way) < 2000:
        grade(queue, ask(queue), 0, mixed=False) if not queue.share.of else ask(queue)
    under_way = [*queue.under_way.values()]
    early, late = under_way[:-511], under_way[-511:]
    for start in range(0, len(early), 100):
        grade(queue, early[start : start + 100], 0, mixed=False)
        assert queue.num_missing() == 0 or max_staleness, "those under way may be mixed"
    grade(queue, late, 0)
    assert queue.num_ready == 511 and len(ask(queue)) > 0


def test_a_tail_that_is_cut_costs_a_step_no_answer_that_it_needs():
    queue, second = after_a_first_step("drop")
    assert len(second) == 9, "4 of 5 were mixed: 5, and a margin"
    grade(queue, second[4:7], 1)
    assert queue.take(2) is None and queue.num_missing() == 0, "others may do"
    grade(queue, second[:1], 1)
    taken, late = queue.take(2)
    assert ids(taken.groups) == [5, 9, 10, 11], "in the order of their prompts"
    assert late == [6, 7, 8, 12, 13] and not queue.under_way and queue.num_ready == 0
    assert taken.metrics == {"rollout/rounds": 1, "rollout/groups_surplus": 0, "rollout/groups_cut": 5}
    queue.grade(6, answered(second[1], 1))  # comes all the same
    assert queue.num_ready == 0 and queue.num_missing() == 0


def test_a_step_that_takes_groups_in_turn_waits_for_those_whose_turn_it_is():
    queue, second = after_a_first_step("wait")
    grade(queue, second[4:], 1)
    assert queue.num_ready == 5 and queue.take(2) is None
    grade(queue, second[1:4], 1)
    assert queue.take(2) is None, "the first may be mixed"
    grade(queue, second[:1], 1, mixed=False)
    taken, late = queue.take(2)
    first = second[0].request_id
    assert ids(taken.groups) == [first + 1, first + 2, first + 3, first + 4] and late == []
    assert ids(taken.graded) == [*range(first, first + 5)], "what of the others is graded by now is chance"
    assert taken.metrics == {"rollout/rounds": 1, "rollout/groups_surplus": 4}
    assert queue.num_ready == 0 and len(queue.kept()) == 5, "the step's own, until it has trained on them"


def test_a_step_that_takes_groups_in_turn_begins_while_others_are_under_way():
    queue, second = after_a_first_step("wait")
    grade(queue, second[:4], 1)
    taken, late = queue.take(2)
    assert late == [request.request_id for request in second[4:]] and not queue.under_way
    assert ids(taken.groups) == ids(taken.graded) and taken.metrics["rollout/groups_surplus"] == 5
    queue.trained()
    queue.grade(late[0], answered(second[4], 1))  # comes all the same
    assert queue.num_ready == 0 and not queue.kept()


@pytest.mark.parametrize("mixed", [True, False])
def test_a_run_that_was_ahead_goes_on_as_one_that_waits(mixed):
    """What it had under way and graded counts as asked for; groups that are too old now still tell of the share."""
    ahead = make_queue(1)
    first = ask(ahead)
    grade(ahead, first[:3], 0, mixed=mixed)
    ahead.synced(1, {request.request_id for request in first[3:]}, restarts=False)
    state = ahead.state_dict() | {"num_taken": 1}
    queue = make_queue(0)
    queue.restore(state, ahead.kept(), first[3:])
    queue.synced(1, set(), restarts=True)
    while (found := queue.take(2)) is None:
        ask(queue) if queue.num_missing() else None
        grade(queue, [*queue.under_way.values()], 1)
    taken, _ = found
    told, asked = len(taken.graded), queue._next_id
    assert taken.metrics["rollout/rounds"] >= 1 and taken.metrics["rollout/groups_surplus"] == asked - told
    assert queue.share.value == pytest.approx((4 + 3 * mixed) / told if told > 4 else 1)


def test_groups_without_a_verdict_are_told_apart_from_hard_ones():
    queue = make_queue(0, 8)
    with pytest.raises(NoMixedGroups) as caught:
        while True:
            for request in ask(queue):
                group = answered(request, 0)
                queue.grade(request.request_id, replace(group, verdicts=(Verdict(kind="timeout"),) * 2))
    assert "0% unparsable, 100% without a verdict (timeouts, errors)); see first to the graders (" in str(caught.value)
    _, said = sampled_until_it_ends(0.0, 8)
    assert "0% unparsable); use prompts of another difficulty, a larger" in said


@pytest.mark.parametrize("share", [0.9, 0.5, 0.15])
def test_in_whichever_order_groups_get_ready_the_same_steps_are_taken(share):
    """Groups, what is told of them, rounds, and how many prompts the next step asks for."""

    def steps(seed):
        queue, order, seen = make_queue(0, 8, max_rounds=10), np.random.default_rng(seed), []
        for step in range(1, 13):
            under_way = []
            while (found := queue.take(step)) is None:
                under_way += ask(queue) if queue.num_missing() else []
                request = under_way.pop(int(order.integers(len(under_way))))
                is_mixed = np.random.default_rng(request.request_id).random() < share
                queue.grade(request.request_id, answered(request, step - 1, mixed=bool(is_mixed)))
            taken, late = found
            assert not queue.under_way and set(late) >= {request.request_id for request in under_way}
            queue.trained()
            queue.synced(step, set(), restarts=False)
            seen.append((ids(taken.groups), ids(taken.graded), taken.metrics, queue.state_dict()))
        return seen

    first = steps(0)
    assert all(steps(seed) == first for seed in range(1, 6))
    assert any(metrics["rollout/groups_surplus"] for _, _, metrics, _ in first)


def test_a_round_that_can_not_do_is_followed_before_it_is_whole():
    queue, second = after_a_first_step("drop")
    grade(queue, second[:5], 1, mixed=False)
    assert queue.num_missing() == 0, "4 are under way"
    grade(queue, second[5:6], 1, mixed=False)
    assert queue.num_missing() > 0
    waiting, second = after_a_first_step("wait")
    grade(waiting, second[:6], 1, mixed=False)
    assert waiting.num_missing() == 0 and waiting.take(2) is None


def test_a_tail_that_is_kept_is_trained_on_a_step_later_and_not_after_that():
    queue, second = after_a_first_step("keep")
    grade(queue, second[4:5], 1, mixed=False)
    grade(queue, second[5:], 1)
    taken, late = queue.take(2)
    assert (ids(taken.groups), late) == ([10, 11, 12, 13], [])
    assert taken.metrics["rollout/groups_cut"] == 4 and taken.metrics["async/staleness_max"] == 0
    queue.trained()
    grade(queue, second[:1], 1)  # while the actor trains
    assert queue.num_ready == 1 and queue.num_missing() == 0, "nothing new is begun before the sync"
    queue.synced(2, {6, 7, 8}, restarts=False)
    third = ask(queue)
    assert len(third) == 4, "one is ready, and three of the earlier are under way"
    grade(queue, third, 2)
    taken, late = queue.take(3)
    assert ids(taken.groups) == [5, 14, 15, 16] and taken.metrics["async/staleness_max"] == 1
    assert late == [6, 7, 8] and queue.num_ready == 1, "step 4 can't train on what policy 1 began"
    assert taken.metrics["async/groups_dropped"] == 3
