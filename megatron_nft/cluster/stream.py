"""Requests that stay under way on the engines: asked at any time, answered in any order, kept over weight syncs.

Whoever wants answers submits requests and polls for groups: the source of a run's groups (groups/source.py), and
`stream_answers` for an evaluation. All engines share one queue, in the order of `submit`: none idles while a prompt
waits, since each is given the next one as soon as it has a place free (places.py). Each engine that has work is always
in one short call of `Engine.advance`, so that a weight sync, whose verbs queue behind that call, comes in between two
decode steps. An engine that dies is started again (cluster/fleet.py); its requests go back to the queue, for the others
or for itself once it has weights.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import takewhile
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from megatron_nft.cluster.elsewhere import hand_over, leave
from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.places import Places
from megatron_nft.cluster.processes import cause_of
from megatron_nft.config import RolloutConfig
from megatron_nft.rollout.api import CANARY, EngineError, Request, Sampling, requests_of
from megatron_nft.types import Prompt, RolloutGroup

CALL_S, CALL_S_PER_ENGINE = 0.05, 0.02
"""Of one `Engine.advance`, at least, and for each engine: what a weight sync may have to wait for. A call costs the
driver about 1 ms, so many engines are called less often each."""
WAIT_S = 0.5
"""Of one look at the engines by `sample_groups`."""


class EnginesEmpty(RuntimeError):
    """No engine has weights, and whoever asks has none to give."""


@dataclass(frozen=True)
class _Call:
    engine: str
    deadline: float


class RequestStream:
    """Used by one thread at a time.

    Args:
        name: of the stream, one of its kind at a time: engines tell streams apart by it.
        answers_at_once: that an engine works on; the requests beyond wait for whichever engine has a place next, so
            that a slow one holds up few. None: all are given at once.
        timeout_s: longest wait for one `Engine.advance`.

    Attributes:
        busy_s: seconds that the engines have spent on requests, all together.
        dropped_tokens: how long the unfinished answers were that engines have dropped, until somebody takes them.
    """

    def __init__(self, fleet: Fleet, name: str, *, answers_at_once: int | None, timeout_s: float) -> None:
        self._fleet, self._name, self._at_once, self._timeout_s = fleet, name, answers_at_once, timeout_s
        self._call_s = max(CALL_S, CALL_S_PER_ENGINE * len(fleet.names))
        self._waiting: deque[Request] = deque()
        self._asked: dict[str, dict[int, Request]] = {name: {} for name in fleet.names}
        self._dropped: dict[str, list[int]] = {name: [] for name in fleet.names}
        self._places = {name: Places(answers_at_once or 0) for name in fleet.names}
        self._handles = {name: fleet.handle(name) for name in fleet.names}
        self._calls: dict[Any, _Call] = {}
        self.busy_s, self.dropped_tokens = 0.0, []

    @property
    def is_working(self) -> bool:
        """An engine is in a call."""
        return bool(self._calls)

    @property
    def num_requests(self) -> int:
        """That are not answered yet."""
        return len(self._waiting) + sum(len(asked) for asked in self._asked.values())

    @property
    def has_work(self) -> bool:
        """A `poll` has something to do, or to wait for."""
        ready = [name for name in self._asked if self._fleet.is_ready(name)]
        return self.is_working or any(self._waiting or self._asked[name] or self._dropped[name] for name in ready)

    @property
    def begun(self) -> set[int]:
        """Ids of the requests that engines work on, or have taken in."""
        return {request_id for asked in self._asked.values() for request_id in asked}

    def submit(self, requests: Iterable[Request]) -> None:
        """Asks for answers; an engine that has room gets them in one of the next polls."""
        self._waiting.extend(requests)

    def drop(self, request_ids: Sequence[int]) -> None:
        """Forgets requests, wherever they are."""
        unwanted = set(request_ids)
        self._waiting = deque(request for request in self._waiting if request.request_id not in unwanted)
        for name, asked in self._asked.items():
            self._dropped[name] += asked.keys() & unwanted
            self._asked[name] = {key: request for key, request in asked.items() if key not in unwanted}

    def drop_all(self) -> None:
        """Forgets all requests."""
        self.drop([*self.begun, *(request.request_id for request in self._waiting)])

    def poll(self, wait_s: float) -> list[tuple[int, RolloutGroup]]:
        """The groups that have got ready, with their request's id; waits for the first engine to say something.

        Raises:
            ClusterError: engines died, or did not answer, more often than rollout.max_restarts.
            EngineError: an engine refuses a request.
        """
        self.take_back_lost()
        free = self._free()
        given = self._hand_out(free)
        for name in free:
            self._call(name, given[name])
        return self._collect(wait_s)

    def settle(self) -> list[tuple[int, RolloutGroup]]:
        """As `poll`, without new calls: afterwards no engine works, and all requests under way are paused."""
        finished = []
        while self._calls:
            finished += self._collect(self._timeout_s)
        return finished

    def take_back_lost(self) -> None:
        """Puts the requests of engines that have been replaced, here or elsewhere, back into the queue."""
        for name, handle in self._handles.items():
            if self._fleet.handle(name) is not handle:
                self._waiting.extendleft(reversed(self._asked[name].values()))
                self._asked[name], self._dropped[name] = {}, []
                self._places[name] = Places(self._at_once or 0)
                self._calls = {ref: call for ref, call in self._calls.items() if call.engine != name}
                self._handles[name] = self._fleet.handle(name)

    def _free(self) -> list[str]:
        """Engines that may be called. Asked once a turn: a cluster has hundreds, and as many turns each."""
        in_a_call = {call.engine for call in self._calls.values()}
        return [name for name in self._asked if name not in in_a_call and self._fleet.is_ready(name)]

    def _hand_out(self, names: Sequence[str]) -> dict[str, list[Request]]:
        """Gives requests that wait to the engines that have least to do: to idle ones in turn."""
        given: dict[str, list[Request]] = {name: [] for name in names}
        loads = [(self._places[name].taken, turn, name) for turn, name in enumerate(names)] if self._waiting else []
        heapify(loads)
        while self._waiting and loads:
            answers = self._waiting[0].sampling.group_size
            _, turn, name = heappop(loads)
            places = self._places[name]
            if self._at_once is not None and self._asked[name] and not places.has_room(answers):
                continue
            request = self._waiting.popleft()
            self._asked[name][request.request_id] = request
            places.give(answers)
            given[name].append(request)
            heappush(loads, (places.taken, turn, name))
        return given

    def _call(self, name: str, given: list[Request]) -> None:
        if not (self._asked[name] or self._dropped[name]):
            return
        sent = [replace(request, prompt=replace(request.prompt, extra_info={})) for request in given]  # graders' alone
        arguments = (self._name, sent, self._dropped[name], self._call_s)
        ref = self._handles[name].call.remote("advance", arguments, self._timeout_s)
        self._dropped[name] = []
        self._calls[ref] = _Call(name, time.monotonic() + self._timeout_s)

    def _collect(self, wait_s: float) -> list[tuple[int, RolloutGroup]]:
        if not self._calls:
            return []
        first, _ = ray.wait(list(self._calls), timeout=wait_s)
        ready = first and ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)[0]
        finished = []
        for ref in ready:
            name = self._calls.pop(ref).engine
            try:
                groups, load = ray.get(ref)
            except RayActorError as error:
                self._replace(name, f"generate: {name} died: {error}")
                continue
            except RayTaskError as error:
                raise cause_of(error) from error
            self.busy_s += load.seconds
            self.dropped_tokens += load.dropped_tokens
            self._places[name].heard(load)
            for request_id, group in groups:
                if (request := self._asked[name].pop(request_id, None)) is None:  # it was dropped meanwhile
                    leave(group, self._handles[name])
                    continue
                group = hand_over(group, self._handles[name])
                finished.append((request_id, replace(group, prompt=request.prompt)))
        for call in self._late():
            self._replace(call.engine, f"generate: no answer from {call.engine} within {self._timeout_s:g} s")
        return finished

    def _late(self) -> list[_Call]:
        """Calls whose time is over: the oldest, as all have the same."""
        now = time.monotonic()
        return list(takewhile(lambda call: now > call.deadline, self._calls.values()))

    def _replace(self, name: str, why: str) -> None:
        if self._fleet.handle(name) is self._handles[name]:  # else somebody else has noticed
            self._fleet.replace([name], why)
        self.take_back_lost()


def at_once(rollout: RolloutConfig, num_engines: int) -> int | None:
    """Answers that each of several engines is given at a time, as `RequestStream` takes it. A single engine has none to
    share with: it gets all at once, and so has the same ones side by side in every run."""
    return rollout.max_concurrent if num_engines > 1 else None


def stream_answers(
    fleet: Fleet,
    requests: Sequence[Request],
    rollout: RolloutConfig,
    *,
    refill: Callable[[], Any] | None = None,
) -> Iterator[tuple[int, RolloutGroup]]:
    """Has requests answered, in their order where they wait; yields the groups as they get ready, each with its
    request's id. Beside other requests under way, which go on.

    Args:
        refill: gives engines that were started again the weights, so that they answer, too. None: the others do it.

    Raises:
        EnginesEmpty: none is left that has weights.
        ClusterError, EngineError: as `RequestStream.poll`.
    """
    places = at_once(rollout, len(fleet.names))
    stream = RequestStream(fleet, "evaluation", answers_at_once=places, timeout_s=rollout.timeout_s)
    stream.submit(requests)
    while stream.num_requests:
        if fleet.wants_weights and refill is not None:
            yield from stream.settle()
            refill()
        elif fleet.is_empty:
            raise EnginesEmpty("all engines had to be started again, and have no weights")
        elif not stream.has_work:
            time.sleep(WAIT_S)  # they are being started
        yield from stream.poll(WAIT_S)


def sample_groups(
    fleet: Fleet,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    rollout: RolloutConfig,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    refill: Callable[[], Any] | None = None,
) -> list[RolloutGroup]:
    """Samples `sampling.group_size` answers to each prompt, as `stream_answers`; the groups in the prompts' order.

    Args:
        on_progress: called after every group with the groups done and the groups in all.
    """
    groups: dict[int, RolloutGroup] = {}
    for place, group in stream_answers(fleet, requests_of(prompts, sampling), rollout, refill=refill):
        groups[place] = group
        if on_progress:
            on_progress(len(groups), len(prompts))
    return [groups[place] for place in range(len(prompts))]


def one_answer_each(fleet: Fleet, prompt: Prompt, sampling: Sampling, timeout_s: float) -> dict[str, RolloutGroup]:
    """Every engine's own answers to one prompt.

    Raises:
        EngineError: an engine is at work, and gives none.
    """
    deadline = time.monotonic() + timeout_s
    (request,) = requests_of([prompt], sampling)
    answers: dict[str, RolloutGroup] = {}
    new = [request]
    while len(answers) < len(fleet.names):
        for name, (groups, _) in zip(fleet.names, fleet.call("advance", CANARY, new, [], CALL_S), strict=True):
            if groups:
                ((_, group),) = groups
                answers[name] = hand_over(group, fleet.handle(name))
        new = []
        if time.monotonic() > deadline and (silent := [name for name in fleet.names if name not in answers]):
            raise EngineError(f"{', '.join(silent)} gave no answer to {prompt.prompt_id} within {timeout_s:g} s")
    return answers
