"""Engines that play a round instead of sampling it: the planner's decoding step, answers of drawn lengths, no sleep.

All engines of a cluster live in one process and share a clock that runs in the planner's seconds. A call of `advance`
is played as soon as it comes (nothing can happen to an engine within a call), and answered in the order of the clock:
the one that ends first, once every engine that has work is in a call. So the driver sees what it would see on a
cluster, in the same order, as fast as it can take it. Run by stand_ins.py.
"""

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.scale.answers import Answers
from megatron_nft.plan.engine import Engine, decode_step
from megatron_nft.plan.hardware import Machine
from megatron_nft.rollout.api import CANARY, Load, Request
from megatron_nft.types import RolloutGroup

QUIET_S = 0.3
"""Without a call for so long, the driver calls no further engine."""


@dataclass
class _Asked:
    """A request under way."""

    stream: str
    request: Request
    lengths: list[int]
    left: int  # answers


@dataclass
class PlayedEngine:
    """One engine: places, what runs in them, what waits, and its own time."""

    engine: Engine
    machine: Machine
    places: int
    answers: Answers
    now: float = 0.0
    policy_version: int = 0
    _step: float = 0.0  # decoding steps so far
    _running: list[tuple[float, int, str, int]] = field(default_factory=list)  # (last step, tie, request, length)
    _waiting: deque[tuple[str, int]] = field(default_factory=deque)  # (request, length)
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _finished: dict[str, list[tuple[int, RolloutGroup]]] = field(default_factory=dict)
    _context: float = 0.0  # tokens that the running answers attend to
    _ties: int = 0

    @property
    def has_work(self) -> bool:
        return bool(self._asked)

    def advance(
        self, stream: str, requests: list[Request], dropped: list[int], seconds: float
    ) -> tuple[list[tuple[int, RolloutGroup]], Load]:
        """As rollout/api.py says."""
        begun = self.now
        for key in (_name(stream, request_id) for request_id in dropped):
            self._drop(key)
        for request in requests:
            self._take_in(stream, request)
        while any(asked.stream == stream for asked in self._asked.values()):
            if not self._play(begun + seconds):
                break
        load = Load(seconds=self.now - begun, running=len(self._running), waiting=len(self._waiting))
        return self._finished.pop(stream, []), load

    def _take_in(self, stream: str, request: Request) -> None:
        lengths = self.answers.lengths(request)
        key = _name(stream, request.request_id)
        self._asked[key] = _Asked(stream, request, lengths, len(lengths))
        self._waiting.extend((key, length) for length in lengths)
        prompt = len(request.prompt.token_ids_P)
        self.now += prompt * self.engine.flops_per_token / self.machine.matmul_flops()
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.places:
            key, length = self._waiting.popleft()
            if key in self._asked:
                self._ties += 1
                heapq.heappush(self._running, (self._step + length, self._ties, key, length))
                self._context += self._prompt_tokens(key)

    def _play(self, until: float) -> bool:
        """To the end of the next answer, or as far as time allows; False then."""
        end, batch = self._running[0][0], len(self._running)
        steps = end - self._step
        middle = self._context + batch * steps / 2
        one = sum(decode_step(self.engine, self.machine, batch, middle).values())
        if self.now + steps * one > until:
            steps = max((until - self.now) / one, 0.0)
        self.now += steps * one
        self._step += steps
        self._context += batch * steps
        if self._step < end:
            return False
        while self._running and self._running[0][0] <= self._step:
            _, _, key, length = heapq.heappop(self._running)
            self._context -= self._prompt_tokens(key) + length
            self._end(key)
        self._fill()
        return True

    def _end(self, key: str) -> None:
        asked = self._asked[key]
        asked.left -= 1
        if not asked.left:
            del self._asked[key]
            group = self.answers.group(asked.request, asked.lengths, self.policy_version)
            self._finished.setdefault(asked.stream, []).append((asked.request.request_id, group))

    def _prompt_tokens(self, key: str) -> int:
        return len(self._asked[key].request.prompt.token_ids_P)

    def _drop(self, key: str) -> None:
        if key not in self._asked:
            return
        mine = [running for running in self._running if running[2] == key]
        self._context -= sum(self._prompt_tokens(key) + self._step - (end - length) for end, _, _, length in mine)
        self._running = [running for running in self._running if running[2] != key]
        heapq.heapify(self._running)
        del self._asked[key]
        self._fill()

    def forget(self) -> None:
        """Drops all requests."""
        self._running, self._waiting, self._asked, self._finished = [], deque(), {}, {}
        self._context = 0.0


@dataclass
class _Call:
    index: int
    done: asyncio.Future
    answer: Any


class PlayedFleet:
    """All engines of a cluster, and their clock."""

    def __init__(self, count: int, engine: Engine, machine: Machine, places: int, answers: Answers) -> None:
        self._engines = [PlayedEngine(engine, machine, places, answers) for _ in range(count)]
        self._calls: list[tuple[float, int, _Call]] = []
        self._in_call: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_filling = False  # a round has begun: the driver gives all engines work, one after the other
        self._ties = 0
        self.clock = self.busy_s = 0.0
        self.verbs: Counter[str] = Counter()

    async def call(self, index: int, verb: str, arguments: tuple) -> Any:
        """One engine's verb, as Ray brings it."""
        self.verbs[verb] += 1
        engine = self._engines[index]
        if verb == "advance":
            return await self._advance(index, *arguments)
        if verb == "finish_update":
            (engine.policy_version,) = arguments
        elif verb == "forget":
            engine.forget()
        return None

    async def _advance(self, index: int, stream: str, requests: list, dropped: list, seconds: float) -> Any:
        if stream == CANARY:
            return [(r.request_id, self._engines[index].answers.canary(r)) for r in requests], Load(seconds=0.0)
        engine = self._engines[index]
        self._is_filling |= not any(engine.has_work for engine in self._engines)
        if not engine.has_work:  # it has stood still
            engine.now = max(engine.now, self.clock)
        answer = engine.advance(stream, requests, dropped, seconds)
        self.busy_s += answer[1].seconds
        call = _Call(index, asyncio.get_running_loop().create_future(), answer)
        self._ties += 1
        heapq.heappush(self._calls, (engine.now, self._ties, call))
        self._in_call.add(index)
        self._release()
        return await call.done

    def _release(self) -> None:
        """Answers what the clock has come to."""
        if self._timer is not None:
            self._timer.cancel()
        self._is_filling &= len(self._in_call) < len(self._engines)
        while self._calls and not self._is_filling and self._all_are_in_calls():
            self._answer_first()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(QUIET_S, self._when_quiet) if self._calls else None

    def _all_are_in_calls(self) -> bool:
        return all(index in self._in_call for index, engine in enumerate(self._engines) if engine.has_work)

    def _when_quiet(self) -> None:
        """The driver calls no other engine: there is nothing for it, or it pauses."""
        was_filling, self._is_filling = self._is_filling, False
        if was_filling:
            self._release()
        while self._calls and not was_filling:
            self._answer_first()

    def _answer_first(self) -> None:
        end, _, call = heapq.heappop(self._calls)
        self.clock = max(self.clock, end)
        self._in_call.discard(call.index)
        if not call.done.done():
            call.done.set_result(call.answer)

    def counts(self) -> Mapping[str, float]:
        """Since the start: the clock, seconds that engines have worked, calls by verb."""
        return {"clock": self.clock, "busy": self.busy_s, **self.verbs}


def _name(stream: str, request_id: int) -> str:
    return f"{stream} {request_id}"
