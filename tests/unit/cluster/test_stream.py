"""Requests under way on engines that answer, die or hang: each is answered once, whatever happens.

Engines, their fleet, the clock and the few of Ray's calls that a stream makes are stand-ins; real engines that are
killed, stopped and replaced: tests/e2e/test_source.py.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import RayActorError

from megatron_nft.cluster import stream
from megatron_nft.cluster.stream import RequestStream
from megatron_nft.rollout.api import Load, Sampling, requests_of
from megatron_nft.types import Prompt, RolloutGroup

TIMEOUT_S = 60.0


class Call:
    """Ray's reference: of one `Engine.advance`, until it is answered."""

    def __init__(self, engine, arguments):
        self.engine, self.answer = engine, None
        _, self.requests, self.dropped, _ = arguments

    def answered(self, *requests):
        """Groups without rollouts, as if the engine had answered these requests."""
        self.ends(*requests, load=Load(seconds=0.5))

    def ends(self, *requests, load):
        """As if the engine had answered these requests, and told this load."""
        self.answer = ([(r.request_id, RolloutGroup(prompt=r.prompt, rollouts=())) for r in requests], load)


class Fleet:
    """Engines by name; one that is replaced has another handle, and is not ready before it is told so."""

    def __init__(self, count=2):
        self.names = [f"engine {number}" for number in range(count)]
        self.calls, self.replaced = [], []
        self._handles = {name: self._handle(name) for name in self.names}
        self._ready = set(self.names)

    def _handle(self, name):
        def remote(verb, arguments, timeout_s):
            assert verb == "advance"
            self.calls.append(Call(name, arguments))
            return self.calls[-1]

        return SimpleNamespace(call=SimpleNamespace(remote=remote))

    def handle(self, name):
        return self._handles[name]

    def is_ready(self, name):
        return name in self._ready

    def replace(self, names, why):
        self.replaced += names
        self._ready -= set(names)
        self._handles |= {name: self._handle(name) for name in names}

    def started(self, name):
        self._ready.add(name)

    def under_way(self, name):
        """The engine's last call."""
        return next(call for call in reversed(self.calls) if call.engine == name)


@pytest.fixture
def clock(monkeypatch):
    """Of the stream's deadlines; and Ray, as far as it is called."""
    clock = SimpleNamespace(now=0.0)

    def wait(refs, num_returns=1, timeout=None):
        done = [ref for ref in refs if ref.answer is not None][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    def get(ref):
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    monkeypatch.setattr(stream, "ray", SimpleNamespace(wait=wait, get=get))
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def requests(count):
    prompts = [
        Prompt(prompt_id=f"p/{i}", text="", token_ids_P=np.arange(2, dtype=np.int32), ground_truth="", data_source="",
               extra_info={"row": i})
        for i in range(count)
    ]  # fmt: skip
    return requests_of(prompts, Sampling(group_size=2, temperature=1.0, max_answer_tokens=8, seed=0))


def open_stream(fleet, at_once=None):
    return RequestStream(fleet, "rollouts", answers_at_once=at_once, timeout_s=TIMEOUT_S)


def ids(found):
    return [request_id for request_id, _ in found]


def finish(fleet, stream):
    """Has ready engines answer all that they are asked, until nothing is left: the ids of what they answered."""
    found = []
    for _ in range(20):
        for call in fleet.calls:
            if call.answer is None:
                call.answered(*call.requests)
        found += ids(stream.poll(0.0))
        if not stream.num_requests:
            return found
    raise AssertionError(f"{stream.num_requests} requests are never answered")


def test_engines_share_the_queue_and_groups_come_with_their_own_prompt(clock):
    fleet, asked = Fleet(), requests(5)
    stream = open_stream(fleet)
    stream.submit(asked)
    assert stream.poll(0.0) == []
    first, second = (fleet.under_way(name) for name in fleet.names)
    assert [r.request_id for r in first.requests] == [0, 2, 4] and [r.request_id for r in second.requests] == [1, 3]
    assert first.requests[0].prompt.extra_info == {}, "graders' alone"
    first.answered(*first.requests)
    found = stream.poll(0.0)
    assert ids(found) == [0, 2, 4] and stream.num_requests == 2 and stream.busy_s == 0.5
    assert all(group.prompt is asked[request_id].prompt for request_id, group in found)


def test_an_engine_is_given_no_more_than_it_has_room_for(clock):
    fleet, asked = Fleet(), requests(7)
    stream = open_stream(fleet, at_once=2)
    stream.submit(asked)
    stream.poll(0.0)
    assert stream.begun == {0, 1, 2, 3} and stream.num_requests == 7
    fleet.under_way("engine 1").ends(asked[1], load=Load(seconds=0.5, running=2))
    stream.poll(0.0)
    stream.poll(0.0)
    assert stream.begun == {0, 2, 3, 4}, "the one that had room next"


def test_places_are_those_of_answers(clock):
    """Prompts whose answers have ended but for one hold no more places than that."""
    fleet, asked = Fleet(), requests(9)
    stream = open_stream(fleet, at_once=4)
    stream.submit(asked)
    stream.poll(0.0)
    assert stream.begun == {0, 1, 2, 3, 4, 5}
    fleet.under_way("engine 1").ends(load=Load(seconds=0.5, running=3))
    stream.poll(0.0)
    stream.poll(0.0)
    assert [r.request_id for r in fleet.under_way("engine 1").requests] == [6, 7], "of 3 groups 3 answers are left"
    assert stream.begun == {*range(8)} and stream.num_requests == 9


def test_a_full_kv_cache_gets_nothing_while_another_engine_has_room(clock):
    fleet, asked = Fleet(), requests(9)
    stream = open_stream(fleet, at_once=4)
    stream.submit(asked)
    stream.poll(0.0)
    fleet.under_way("engine 0").ends(load=Load(seconds=0.5, running=2, waiting=4, kv_use=0.99))
    fleet.under_way("engine 1").ends(*asked[1:6:2], load=Load(seconds=0.5))
    stream.poll(0.0)
    stream.poll(0.0)
    assert fleet.under_way("engine 0").requests == []
    assert [r.request_id for r in fleet.under_way("engine 1").requests] == [6, 7, 8]


def test_the_prompts_of_an_engine_that_dies_are_asked_again_and_come_once(clock):
    fleet, asked = Fleet(), requests(6)
    stream = open_stream(fleet)
    stream.submit(asked)
    stream.poll(0.0)
    fleet.under_way("engine 0").answered(asked[0])
    found = ids(stream.poll(0.0))
    stream.poll(0.0)
    fleet.under_way("engine 0").answer = RayActorError()
    stream.poll(0.0)
    assert fleet.replaced == ["engine 0"] and stream.num_requests == 5
    found += finish(fleet, stream)
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    again = [r.request_id for call in fleet.calls[2:] if call.engine == "engine 1" for r in call.requests]
    assert again == [2, 4], "what engine 0 had not answered"


def test_late_answers_of_an_engine_that_was_given_up_are_not_kept(clock):
    """It hung, its prompts were asked again; that it answers after all must not bring them twice."""
    fleet, asked = Fleet(), requests(4)
    stream = open_stream(fleet)
    stream.submit(asked)
    stream.poll(0.0)
    hung = fleet.under_way("engine 0")
    fleet.under_way("engine 1").answered(asked[1], asked[3])
    found = ids(stream.poll(0.0))
    clock.now = TIMEOUT_S + 1.0
    stream.poll(0.0)
    assert fleet.replaced == ["engine 0"]
    hung.answered(*hung.requests)
    found += finish(fleet, stream)
    assert sorted(found) == [0, 1, 2, 3], "each once"
    fleet.started("engine 0")
    stream.submit(requests(6)[4:])
    assert sorted(finish(fleet, stream)) == [4, 5] and fleet.replaced == ["engine 0"]
    assert not stream.has_work


def test_an_engine_that_was_replaced_elsewhere_gives_its_requests_back_in_their_order(clock):
    fleet, asked = Fleet(), requests(6)
    stream = open_stream(fleet, at_once=2)
    stream.submit(asked)
    stream.poll(0.0)
    fleet.replace(["engine 0"], "it died during a weight sync")
    fleet.started("engine 0")
    stream.take_back_lost()
    assert stream.begun == {1, 3} and stream.num_requests == 6
    stream.poll(0.0)
    assert [r.request_id for r in fleet.under_way("engine 0").requests] == [0, 2]
    assert sorted(finish(fleet, stream)) == [0, 1, 2, 3, 4, 5]


def test_what_was_dropped_is_told_to_its_engine_and_does_not_come(clock):
    fleet, asked = Fleet(count=1), requests(3)
    stream = open_stream(fleet, at_once=2)
    stream.submit(asked)
    stream.poll(0.0)
    stream.drop([0, 2])
    assert stream.num_requests == 1
    fleet.under_way("engine 0").answered(asked[0])
    assert stream.poll(0.0) == []
    stream.poll(0.0)
    assert fleet.under_way("engine 0").dropped == [0]
    fleet.under_way("engine 0").answered(asked[1])
    assert ids(stream.poll(0.0)) == [1] and stream.num_requests == 0


def test_settled_no_engine_works(clock):
    fleet, asked = Fleet(), requests(2)
    stream = open_stream(fleet)
    stream.submit(asked)
    stream.poll(0.0)
    for call, request in zip(fleet.calls, asked, strict=True):
        call.answered(request)
    assert stream.is_working and ids(stream.settle()) == [0, 1] and not stream.is_working
