"""Asynchronous runs: what is asked for, what a step gets, what grows too old, what a checkpoint holds."""

import pytest

from megatron_nft.groups.file import load_groups, save_groups
from megatron_nft.groups.queue import NoMixedGroups
from megatron_nft.groups.staleness import staleness_metrics
from megatron_nft.rollout.api import Request
from tests.unit.groups.queues import SAMPLING, answered, ask, grade, ids, make_prompt, make_queue


def test_every_step_counts_its_own():
    """Rounds, prompts asked for, and the patience with groups that are not mixed."""
    queue = make_queue(0, max_rounds=2)
    for step in (1, 2, 3):
        grade(queue, ask(queue), step - 1)
        taken, _ = queue.take(step)
        assert (taken.metrics["rollout/rounds"], len(taken.graded), queue.num_asked) == (1, 4, 0)
        queue.trained()
        queue.synced(step, set(), restarts=False)
    ahead = make_queue(2)
    requests = ask(ahead)
    grade(ahead, requests[:4], 0)
    ahead.take(1)
    ahead.synced(1, set(ahead.under_way), restarts=True)
    grade(ahead, requests[4:], 1)
    restarted = [ahead.take(step)[0].metrics["async/groups_restarted"] for step in (2, 3)]
    assert restarted == [8, 0]


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
def test_a_full_queue_asks_for_nothing(max_staleness):
    queue = make_queue(max_staleness)
    grade(queue, ask(queue), 0)
    assert queue.num_ready == queue.capacity == 4 * (max_staleness + 1) and queue.num_missing() == 0
    queue.take(1)
    assert queue.num_missing() == 0, "still the same policy"
    queue.synced(1, set(), restarts=False)
    assert queue.num_missing() == 4


def test_what_is_under_way_counts_by_the_share_that_is_mixed():
    queue = make_queue(1)
    requests = ask(queue)
    grade(queue, requests[:4], 0)
    grade(queue, requests[4:], 0, mixed=False)
    assert queue.share.value == 0.5 and len(ask(queue)) == 8 and queue.num_missing() == 0


def test_nothing_is_asked_for_beyond_the_last_step():
    queue = make_queue(4, num_steps=2)
    assert queue.num_missing() == 8


def test_the_oldest_go_first_and_no_token_is_older_than_allowed():
    queue = make_queue(1)
    first = ask(queue)  # 8, by policy 0
    grade(queue, first[1:6], 0)
    taken, late = queue.take(1)
    assert (ids(taken.groups), late, queue.num_ready) == ([1, 2, 3, 4], [], 1)
    queue.trained()
    queue.synced(1, {0, 6, 7}, restarts=False)
    second = ask(queue)
    assert len(second) == 4
    grade(queue, second, 1)
    grade(queue, first[6:7], 0, newer=((1, 1),))
    taken, late = queue.take(2)
    assert ids(taken.groups) == [5, 6, 8, 9]
    assert taken.metrics["async/staleness_max"] == 1 and taken.metrics["async/groups_carried"] == 1
    assert sorted(late) == [0, 7], "begun by policy 0: step 3 trains policy 2"
    assert taken.metrics["async/groups_dropped"] == 2
    queue.grade(7, answered(first[7], 0))  # comes all the same
    assert queue.num_ready == 2 and not queue.under_way


def test_a_ready_group_that_is_overtaken_too_often_is_dropped():
    queue = make_queue(1)
    first = ask(queue)
    grade(queue, first, 0)
    queue.take(1)
    taken, _ = queue.take(2)
    assert taken.metrics["async/staleness_max"] == 1
    queue.synced(2, set(), restarts=False)
    second = ask(queue)
    grade(queue, second, 1)  # 8, and only 4 may be used before they are too old
    queue.take(3)
    assert queue.num_ready == 0


def test_restarted_requests_are_as_young_as_the_weights():
    queue = make_queue(1)
    requests = ask(queue)
    grade(queue, requests[:4], 0)
    queue.take(1)
    queue.trained()
    queue.synced(1, {4, 5}, restarts=True)
    grade(queue, requests[4:], 1)
    taken, late = queue.take(2)
    assert taken.metrics["async/groups_restarted"] == 2 and not late
    assert taken.metrics["async/staleness_max"] == 0


@pytest.mark.parametrize("restarts", [False, True])
def test_answers_that_wait_for_their_verdicts_are_no_younger_after_a_sync(restarts):
    queue = make_queue(1)
    requests = ask(queue)
    grade(queue, requests[:4], 0)
    queue.take(1)
    queue.trained()
    queue.synced(1, set(), answered={4, 5}, restarts=restarts)
    second = ask(queue)
    queue.synced(2, {6, 7}, answered={4, 5}, restarts=restarts)
    grade(queue, [*requests[6:], *second], 2)
    taken, late = queue.take(2)
    assert late == [4, 5] and taken.metrics["async/groups_restarted"] == 2 * restarts
    grade(queue, requests[4:6], 0)
    assert not {4, 5} & {kept.request_id for kept in queue.kept() if kept.is_ready}


def test_requests_that_no_engine_has_begun_age_with_the_weights():
    queue = make_queue(1)
    requests = ask(queue)
    grade(queue, requests[:4], 0)
    queue.take(1)
    queue.synced(1, {4}, restarts=False)
    grade(queue, [*requests[5:6], *ask(queue)], 1)
    _, late = queue.take(2)
    assert late == [4]


def test_a_step_waits_for_a_group_in_time_in_place_of_each_that_it_would_drop():
    queue = make_queue(1)
    first = ask(queue)
    grade(queue, first[:5], 0)
    assert queue.take(1), "5, 6 and 7 are in time for the next step"
    queue.trained()
    queue.synced(1, {5, 6, 7}, restarts=False)
    second = ask(queue)
    assert len(second) == 4
    grade(queue, second[:3], 1)
    assert queue.num_ready == 4 and queue.take(2) is None, (
        "three would be too old for step 3; one in time comes instead"
    )
    grade(queue, first[5:6], 0)
    taken, late = queue.take(2)
    assert ids(taken.groups) == [4, 5, 8, 9] and late == [6, 7] and queue.num_ready == 1


def test_no_step_waits_for_late_groups_alone():
    queue = make_queue(1)
    first = ask(queue)
    grade(queue, first[:4], 0)
    queue.take(1)
    queue.synced(1, {4, 5, 6, 7}, restarts=False)
    second = ask(queue)
    grade(queue, second[:3], 1)
    assert queue.take(2) is None
    grade(queue, second[3:], 1)
    _, late = queue.take(2)
    assert late == [4, 5, 6, 7], "all that is in time is ready"


@pytest.mark.parametrize(
    ("max_staleness", "patience", "left"),
    [(0, 255, ", and the 9 more that may be tried would not bring them"), (1, 3 * 88, "")],
)
def test_sampling_ends_when_no_group_is_mixed(max_staleness, patience, left):
    queue, num_graded = make_queue(max_staleness), 0
    says = (
        f"step 1: 0 of {patience} groups had right and wrong answers, train.groups_per_step = 4 are needed{left} (of "
        f"{patience} groups {patience} were all right; of their answers 0% were cut off, 0% unparsable); .* or raise "
        "rollout.max_sampling_rounds = 3"
    )
    with pytest.raises(NoMixedGroups, match=says.replace("(", r"\(").replace(")", r"\)")):
        for _ in range(100):
            requests = ask(queue)
            grade(queue, requests, 0, mixed=False)
            num_graded += len(requests)
    assert num_graded == patience


def test_staleness_is_that_of_each_token():
    request = Request(request_id=0, prompt=make_prompt(0), seed_id="", sampling=SAMPLING)
    group = answered(request, 3, newer=((1, 4), (2, 5)))
    assert group.rollouts[0].policy_versions_A.tolist() == [3, 4, 5]
    metrics = staleness_metrics([group], step=6)
    assert metrics == {"async/staleness_mean": 1.0, "async/staleness_max": 2, "async/groups_carried": 1}


def restored(queue, tmp_path, max_staleness=1):
    """Another queue, from what a checkpoint keeps of this one."""
    state, kept = queue.state_dict(), queue.kept()
    prompts = {f"p/{number}": make_prompt(number) for number in range(100)}
    if kept:
        save_groups(kept, tmp_path / "groups.npz")
        kept = load_groups(tmp_path / "groups.npz", prompts)
    requests = [
        Request(request_id=key, prompt=prompts[name], seed_id=seed_id, sampling=SAMPLING)
        for key, name, seed_id, _ in state["under_way"]
    ]
    other = make_queue(max_staleness)
    other.restore(state, kept, requests)
    return other


def test_a_checkpoint_loses_nothing_graded_and_holds_nothing_trained(tmp_path):
    queue = make_queue(1)
    requests = ask(queue)
    grade(queue, requests[:5], 0)
    queue.take(1)
    grade(queue, requests[5:6], 0, newer=((2, 1),))
    grade(queue, requests[6:7], 0, mixed=False)
    queue.trained()
    other = restored(queue, tmp_path)
    assert other.under_way.keys() == queue.under_way.keys() == {7} and other.num_missing() == queue.num_missing()
    for a, b in zip(queue.kept(), other.kept(), strict=True):
        assert (a.request_id, a.is_ready, a.is_reported) == (b.request_id, b.is_ready, b.is_reported)
        for mine, theirs in zip(a.group.rollouts, b.group.rollouts, strict=True):
            assert (mine.text, mine.truncated) == (theirs.text, theirs.truncated)
            assert mine.token_ids_A.tolist() == theirs.token_ids_A.tolist()
            assert mine.engine_logprobs_A.tolist() == theirs.engine_logprobs_A.tolist()
            assert mine.policy_versions_A.tolist() == theirs.policy_versions_A.tolist()
        assert a.group.verdicts == b.group.verdicts
    for one in (queue, other):
        one.synced(1, set(), restarts=False)
        grade(one, ask(one), 1)
        taken, _ = one.take(2)
        assert ids(taken.groups) == [4, 5, 8, 9] and ids(taken.graded)[:2] == [5, 6]


def test_what_a_step_took_and_did_not_train_comes_again(tmp_path):
    queue = make_queue(1)
    requests = ask(queue)
    grade(queue, requests[:6], 0)
    queue.take(1)
    other = restored(queue, tmp_path)
    taken, _ = other.take(1)
    assert ids(taken.groups) == [0, 1, 2, 3] and ids(taken.graded)[:4] == [0, 1, 2, 3] and other.num_taken == 1


def test_an_empty_queue_is_restored(tmp_path):
    queue = restored(make_queue(1), tmp_path)
    assert queue.num_missing() == 8 and queue.kept() == []


def test_groups_that_a_lower_limit_does_not_allow_are_dropped_and_counted():
    queue = make_queue(2)
    grade(queue, ask(queue), 0)
    assert queue.take(1) is not None
    queue.trained()
    queue.synced(1, set(), restarts=False)
    assert queue.num_ready == 8, "for steps 2 and 3"
    strict = make_queue(1)
    strict.restore(queue.state_dict(), queue.kept(), ())
    assert strict.num_ready == 8, "policy 0's, for step 2"
    synchronous = make_queue(0)
    synchronous.restore(queue.state_dict(), queue.kept(), ())
    assert synchronous.num_ready == 0
