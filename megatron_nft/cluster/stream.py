"""Requests that stay under way on the engines: asked at any time, answered in any order, kept over weight syncs.

The producer (producer.py) submits requests and polls for groups. Each engine that has work is always in one short call
of `Engine.advance`, so that a weight sync, whose verbs queue behind that call, comes in between two decode steps. An
engine that dies is started again; its requests go to the others, or wait for its weights.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from megatron_nft.cluster.workers import EngineGroup, Pending
from megatron_nft.rollout.api import Request
from megatron_nft.types import RolloutGroup

CALL_S, CALL_S_PER_ENGINE = 0.05, 0.02
"""Of one `Engine.advance`, at least, and for each engine: what a weight sync may have to wait for. A call costs the
driver about 1 ms, so many engines are called less often each."""


@dataclass(frozen=True)
class _Call:
    engine: str
    deadline: float


class RequestStream:
    """Used by one thread at a time.

    Args:
        requests_per_engine: that an engine is given at a time; the others wait for whichever engine has room next, so
            that a slow one holds up few. None: all at once.
        timeout_s: longest wait for one `Engine.advance`.

    Attributes:
        busy_s: seconds that the engines have spent on requests, all together.
    """

    def __init__(self, engines: EngineGroup, *, requests_per_engine: int | None, timeout_s: float) -> None:
        self._engines, self._room, self._timeout_s = engines, requests_per_engine, timeout_s
        self._call_s = max(CALL_S, CALL_S_PER_ENGINE * engines.num_engines)
        self._waiting: deque[Request] = deque()
        self._asked: dict[str, dict[int, Request]] = {name: {} for name in engines.names}
        self._dropped: dict[str, list[int]] = {name: [] for name in engines.names}
        self._handles = {name: engines.handle(name) for name in engines.names}
        self._calls: dict[Any, _Call] = {}
        self._starting: dict[str, Pending] = {}  # engines without weights
        self.busy_s = 0.0

    @property
    def needs_weights(self) -> bool:
        """An engine has died and started again: it answers nothing before the next weight sync."""
        return bool(self._starting)

    @property
    def is_working(self) -> bool:
        """An engine is in a call."""
        return bool(self._calls)

    @property
    def has_work(self) -> bool:
        """A `poll` has something to do, or to wait for."""
        idle = self._asked.keys() - self._starting.keys()
        return self.is_working or any(self._waiting or self._asked[name] or self._dropped[name] for name in idle)

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

    def poll(self, wait_s: float) -> list[tuple[int, RolloutGroup]]:
        """The groups that have got ready, with their request's id; waits for the first engine to say something.

        Raises:
            ClusterError: engines died, or did not answer, more often than rollout.max_restarts.
            EngineError: an engine refuses a request.
        """
        self._hand_out()
        for name in self._asked:
            self._call(name)
        return self._collect(wait_s)

    def settle(self) -> list[tuple[int, RolloutGroup]]:
        """As `poll`, without new calls: afterwards no engine works, and all requests under way are paused."""
        finished = []
        while self._calls:
            finished += self._collect(self._timeout_s)
        return finished

    def wait_for_starts(self) -> None:
        """Waits until engines that were started again can take weights. To be called before a weight sync."""
        for pending in self._starting.values():
            pending.wait()

    def synced(self) -> None:
        """All engines have weights. Those that died during the sync, and were replaced in it, have lost their requests;
        to be called after a weight sync, in between `settle` and the next `poll`."""
        self._starting.clear()
        for name, handle in self._handles.items():
            if self._engines.handle(name) is not handle:
                self._take_back(name)

    def abandon(self) -> None:
        """Drops all requests, and waits for no engine any more: a weight sync will find out which of them are there."""
        self._starting.clear()
        self.drop([key for asked in self._asked.values() for key in asked] + [r.request_id for r in self._waiting])

    def _hand_out(self) -> None:
        """Gives requests that wait to the engines that have fewest: to idle ones in turn, as sample_groups does."""
        self._given: dict[str, list[Request]] = {name: [] for name in self._asked}
        names = [name for name in self._asked if name not in self._starting and not self._in_call(name)]
        while self._waiting and names:
            name = min(names, key=lambda name: len(self._asked[name]))
            if self._room is not None and len(self._asked[name]) >= self._room:
                break
            request = self._waiting.popleft()
            self._asked[name][request.request_id] = request
            self._given[name].append(request)

    def _in_call(self, name: str) -> bool:
        return any(call.engine == name for call in self._calls.values())

    def _call(self, name: str) -> None:
        if self._in_call(name) or name in self._starting or not (self._asked[name] or self._dropped[name]):
            return
        arguments = (self._given[name], self._dropped[name], self._call_s)
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
                groups, seconds = ray.get(ref)
            except RayActorError as error:
                self._replace(name, f"generate: {name} died: {error}")
                continue
            self.busy_s += seconds
            for request_id, group in groups:
                if self._asked[name].pop(request_id, None) is not None:  # else it has been dropped meanwhile
                    finished.append((request_id, group))
        for ref, call in list(self._calls.items()):
            if time.monotonic() > call.deadline:
                del self._calls[ref]
                self._replace(call.engine, f"generate: no answer from {call.engine} within {self._timeout_s:g} s")
        return finished

    def _replace(self, name: str, why: str) -> None:
        self._starting[name] = self._engines.replace([name], why)
        self._take_back(name)

    def _take_back(self, name: str) -> None:
        self._waiting.extendleft(reversed(self._asked[name].values()))
        self._asked[name], self._dropped[name] = {}, []
        self._handles[name] = self._engines.handle(name)
