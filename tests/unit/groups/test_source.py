"""The source of a synchronous run's groups, with its threads, stream and queue, on engines that a test holds back: what
they are given in which order, what a step waits for, what becomes of a round's last answers.

Real engines: tests/e2e/test_source.py.
"""

import json
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from megatron_nft.config import load_config
from megatron_nft.data.prompts import PromptStream
from megatron_nft.groups.queue import NoMixedGroups
from megatron_nft.groups.readable import UnreadableAnswers
from megatron_nft.groups.share import MixedShare
from megatron_nft.groups.source import GroupSource
from megatron_nft.rollout.api import Sampling, requests_of
from megatron_nft.run.held_out import requests_to
from megatron_nft.types import Verdict
from tests.unit.groups.engines import Engines, Judge, prompts_of, without_ray

GROUPS, PATIENCE_S = 4, 20.0
LENGTHS = (5, 9, 7, 6, 8, 4)
REPORT = SimpleNamespace(
    stage=lambda *_, **__: nullcontext(SimpleNamespace(update=lambda *_: None)), announce=lambda line: None
)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    without_ray(monkeypatch)


def config_of(*overrides):
    return load_config(
        "launch/recipes/quickstart.toml",
        [f"train.groups_per_step={GROUPS}", "train.updates_per_step=1", "rollout.group_size=2", *overrides],
    )


def source_of(engines, *overrides, lengths=LENGTHS, judge=None):
    """A source that is at work for policy 0."""
    source = new_source(engines, *overrides, lengths=lengths, judge=judge)
    source.resume(0)
    return source


def new_source(engines, *overrides, lengths=LENGTHS, judge=None):
    prompts = PromptStream(prompts_of(*lengths), 1)
    return GroupSource(config_of(*overrides), prompts, engines, judge or Judge(), 0)


def next_step(source, engines, version):
    """The actor has trained, and the engines have its weights."""
    source.trained()
    source.pause()
    engines.version = version
    source.resume(version)


def tokens_of(groups):
    return [len(group.prompt.token_ids_P) for group in groups]


def test_prompts_go_in_their_order_until_their_answers_are_known_and_then_the_longest_first():
    """The batch is in the prompts' order in any case."""
    engines = Engines(tokens=lambda request: 100 - 10 * len(request.prompt.token_ids_P))
    with closing(source_of(engines, lengths=(5, 6, 7, 8))) as source:
        assert tokens_of(source.take(1, REPORT).groups) != [5, 6, 7, 8]
        (first,) = engines.given["engine 0"]
        next_step(source, engines, 1)
        taken = source.take(2, REPORT)
    assert first == [0, 1, 2, 3]
    second = engines.given["engine 0"][1]
    prompts = {request_id: request.prompt for request_id, request in engines.seen.items()}
    lengths = [len(prompts[request_id].token_ids_P) for request_id in second]
    assert lengths == sorted(lengths) and set(lengths) == {5, 6, 7, 8}, "the shortest prompts had the longest answers"
    assert tokens_of(taken.groups) == [len(prompts[request_id].token_ids_P) for request_id in sorted(second)[:GROUPS]]


def test_a_resumed_run_asks_in_the_same_order():
    def run(engines, state=None):
        source = new_source(engines, lengths=(5, 6, 7, 8))
        if state is not None:
            source.begin(1, json.loads(json.dumps(state)))
        return source

    engines, again = (Engines(tokens=lambda request: 100 - 10 * len(request.prompt.token_ids_P)) for _ in range(2))
    with closing(run(engines)) as source:
        source.resume(0)
        source.take(1, REPORT)
        source.trained()
        state, _ = source.state()
        next_step(source, engines, 1)
        source.take(2, REPORT)
    with closing(run(again, state)) as source:
        again.version = 1
        source.resume(1)
        source.take(2, REPORT)
    assert again.given["engine 0"] == engines.given["engine 0"][1:]


def test_a_source_that_is_paused_as_soon_as_it_has_been_resumed_comes_to_rest():
    """A step whose groups are there already takes them between the two, before the thread has looked."""
    with closing(new_source(Engines(may_end=lambda request: False))) as source:

        def to_and_fro():
            for _ in range(200):
                source.resume(0)
                source.pause()

        trainer = Thread(target=to_and_fro, daemon=True)
        trainer.start()
        trainer.join(PATIENCE_S)
        assert not trainer.is_alive()


def readable_run(unreadable, *overrides):
    """What is said of a step whose judge can't read the answers to these prompts, and what it ends with."""
    judge, said = Judge(), []
    judge.judge = lambda groups: [
        replace(group, verdicts=(Verdict(kind="unparsable", detail="no box"),) * len(group.rollouts))
        if int(group.prompt.prompt_id[2:]) in unreadable
        else Judge.judge(judge, [group])[0]
        for group in groups
    ]
    report = SimpleNamespace(stage=REPORT.stage, announce=said.append)
    settings = ("rollout.max_sampling_rounds=3", *overrides)
    with closing(new_source(Engines(), *settings, lengths=range(5, 25), judge=judge)) as source:
        source.resume(0)
        try:
            source.take(1, report)
        except NoMixedGroups as error:
            return said, error
        return said, None


def test_answers_that_no_mode_reads_end_a_run_after_its_first_round():
    said, error = readable_run(range(20))
    assert isinstance(error, UnreadableAnswers) and not said
    assert str(error).startswith("8 of 8 answers of 'toy' are unparsable"), "no second round was asked for"
    said, error = readable_run(range(20), 'verdict.if_unparsable="warn"')
    assert said[0].startswith("warning: 8 of 8 answers of 'toy' are unparsable") and "unparsable" in str(error)


def test_what_is_read_depends_neither_on_the_order_of_answers_nor_on_those_that_are_dropped():
    """Of a step's round only what is asked for after its own groups can't be read, and comes first."""
    engines, judge, said, begun = Engines(), Judge(), [], []

    def may_be_read(group):
        number = next(key for key in reversed(engines.seen) if engines.seen[key].prompt == group.prompt)
        return not begun or number < begun[0] + GROUPS

    judge.judge = lambda groups: [
        group if may_be_read(group) else replace(group, verdicts=(Verdict(kind="unparsable"),) * 2)
        for group in Judge.judge(judge, groups)
    ]
    report = SimpleNamespace(stage=REPORT.stage, announce=said.append)
    with closing(source_of(engines, lengths=range(5, 45), judge=judge)) as source:
        begun.append(GROUPS)
        ids = held_back(source, engines, range(GROUPS))
        wait_until(lambda: source._queue.untold and len(source._queue.under_way) == GROUPS)
        ids.clear()
        assert len(source.take(2, report).graded) == GROUPS and not said


def test_whole_groups_are_graded_while_others_are_sampled():
    """The last answer of a round ends once the judge has seen the others, or long after."""
    judge, looks = Judge(), []

    def may_end(request):
        if request.request_id == 0:
            looks.append(len(judge.seen))
        return request.request_id != 0 or looks[-1] == GROUPS - 1 or len(looks) == 500

    with closing(source_of(Engines(may_end=may_end), judge=judge)) as source:
        assert len(source.take(1, REPORT).groups) == GROUPS and looks[-1] == GROUPS - 1


def held_back(source, engines, numbers=(0, 1)):
    """A step whose round is larger than it needs, and of which these requests, counted from its first, are not answered
    until the list that is returned, of their ids, is empty."""
    wanted = []
    source.take(1, REPORT)
    source._queue.share = MixedShare.known(0.5, 100)  # as if half of them had been mixed
    first = source._queue._next_id
    engines.may_end = lambda request: request.request_id not in wanted
    wanted += [first + number for number in numbers]
    next_step(source, engines, 1)
    return wanted


def test_a_tail_that_is_cut_is_gone_from_the_engines_when_the_step_begins():
    """Where they share the actor's GPUs, they sleep next."""
    engines, judge = Engines(), Judge()
    with closing(source_of(engines, 'rollout.tail="drop"', judge=judge)) as source:
        ids = held_back(source, engines)
        taken = source.take(2, REPORT)
        assert engines.under_way == {"engine 0": {}} and not source._stream.is_working
    assert taken.metrics["rollout/groups_cut"] >= 2 and taken.metrics["rollout/cut_tokens_mean"] == 1
    assert len(taken.groups) == GROUPS and len(ids) == 2


def test_a_tail_that_is_kept_goes_on_while_the_actor_trains_and_nothing_new_begins():
    engines, judge = Engines(), Judge()
    with closing(source_of(engines, 'rollout.tail="keep"', judge=judge)) as source:
        ids = held_back(source, engines)
        taken = source.take(2, REPORT)
        assert set(ids) <= engines.under_way["engine 0"].keys() and taken.metrics["async/staleness_max"] == 0
        given = sum(map(len, engines.given["engine 0"]))
        ids.clear()  # they end
        seen = len(judge.seen)
        wait_until(lambda: len(judge.seen) >= seen + 2)
        assert sum(map(len, engines.given["engine 0"])) == given
        next_step(source, engines, 2)
        taken = source.take(3, REPORT)
        assert taken.metrics["async/staleness_max"] == 1 and len(taken.groups) == GROUPS


def test_answers_that_wait_for_a_verdict_stay_as_old_as_they_are():
    engines, judge, may_judge = Engines(), Judge(), Event()
    judge.judge = lambda groups: may_judge.wait(PATIENCE_S) and Judge.judge(judge, groups)
    may_judge.set()
    with closing(source_of(engines, 'rollout.tail="keep"', judge=judge)) as source:
        ids = held_back(source, engines)
        source.take(2, REPORT)
        kept = list(ids)
        may_judge.clear()
        ids.clear()  # they end, and are with the graders
        wait_until(lambda: source._grading is not None and not source._stream.num_requests)
        next_step(source, engines, 2)
        with source._changed:
            assert [source._queue._versions[key] for key in kept] == [1, 1]
        may_judge.set()


def test_a_step_waits_for_the_groups_whose_turn_it_is():
    engines, judge = Engines(), Judge()
    with closing(source_of(engines, judge=judge)) as source:
        ids = held_back(source, engines)
        first = ids[0]
        wait_until(lambda: source._queue.num_ready >= GROUPS)
        assert source._queue.take(2) is None
        ids.clear()
        taken = source.take(2, REPORT)
        assert all(engines.seen[first + i].prompt == group.prompt for i, group in enumerate(taken.groups))
    assert len(taken.graded) == GROUPS and "rollout/groups_cut" not in taken.metrics


def test_and_not_for_those_after_them():
    """They are gone from the engines when the step begins, and what they would have said of lengths and shares is not
    known, whether they are graded by then or not."""

    def step(held):
        engines, judge = Engines(tokens=lambda request: 4 + request.request_id), Judge()
        with closing(source_of(engines, judge=judge)) as source:
            held_back(source, engines, held)
            taken = source.take(2, REPORT)
            assert engines.under_way == {"engine 0": {}} and not source._stream.is_working
            source.trained()
            return [group.prompt.prompt_id for group in taken.graded], taken.metrics, source.state()[0]

    assert step([8, 12]) == step([13]) == step([])


def test_an_evaluation_beside_a_step_is_one_queue_with_it_and_the_step_waits_for_it():
    """The first of its answers ends long after the rollouts have been graded."""
    judge, looks = Judge(), []

    def may_end(request):
        if len(judge.seen) == GROUPS:
            looks.append(request.request_id)
        return request.request_id != -1 or len(looks) > 50

    engines = Engines(may_end=may_end)
    with closing(new_source(engines, judge=judge)) as source:
        answers = source.ask_beside(
            requests_to(prompts_of(3, 12), config_of("evaluate.samples=3", "evaluate.temperature=0.6"))
        )
        source.resume(0)
        taken = source.take(1, REPORT)
    assert sorted(answers) == [-4, -3, -2, -1] and [len(answers[key].rollouts) for key in (-1, -4)] == [3, 1]
    assert len(taken.groups) == len(taken.graded) == GROUPS
    (given,) = engines.given["engine 0"]
    assert given[:4] == [-1, -2, -3, -4] and sorted(given[4:]) == [0, 1, 2, 3], "at once: the same in every run"


def test_what_a_run_that_goes_back_had_asked_beside_is_forgotten():
    engines = Engines(may_end=lambda request: request.request_id >= 0)
    with closing(new_source(engines)) as source:
        state, _ = source.state()
        source.ask_beside(
            requests_of(prompts_of(3), Sampling(group_size=1, temperature=0.0, max_answer_tokens=4, seed=0), -1)
        )
        source.begin(0, state)
        source.resume(0)
        assert len(source.take(1, REPORT).groups) == GROUPS


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
