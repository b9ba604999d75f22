"""Engines in virtual time, for sampling.py: the planner's decoding step, and vLLM's rules.

First come, first served, as many answers as the KV cache holds; when it is full the newest answer is taken out, and its
tokens are computed again later. `VirtualFleet` has the run's own stream (cluster/stream.py) see them as a fleet.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import log, sqrt
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from megatron_nft.cluster import stream as stream_module
from megatron_nft.config import Config
from megatron_nft.plan.engine import decode_step
from megatron_nft.plan.planner import Plan
from megatron_nft.plan.workload import Assumptions, length_quantiles
from megatron_nft.rollout.api import Load, Request
from megatron_nft.types import Rollout, RolloutGroup, Verdict

CORRELATION = 0.5
"""Of the logarithms of the lengths of two answers to a prompt."""
VERDICTS = (Verdict(kind="right"), Verdict(kind="wrong"))


class Answers:
    """How long the answers to a prompt are, and whether its group is mixed: drawn by its id and the step."""

    def __init__(self, config: Config, share: float) -> None:
        longest = config.rollout.max_answer_tokens
        spread = Assumptions().answer_spread
        lengths = length_quantiles(0.3 * longest, spread, longest)
        self._median, self._spread, self._longest, self.share = log(lengths[len(lengths) // 2]), spread, longest, share

    def lengths(self, request: Request) -> np.ndarray:
        own = np.random.default_rng(int(request.prompt.ground_truth)).standard_normal()
        rng = np.random.default_rng([request.sampling.seed, request.request_id % 2**32])
        each = rng.standard_normal(request.sampling.group_size)
        mixture = sqrt(CORRELATION) * own + sqrt(1 - CORRELATION) * each
        return np.minimum(np.exp(self._median + self._spread * mixture), self._longest).astype(int).clip(1)

    def group(self, request: Request, version: int) -> RolloutGroup:
        rng = np.random.default_rng([request.sampling.seed, request.request_id % 2**32, 1])
        is_mixed = rng.random() < self.share
        rollouts = tuple(_rollout(int(length), version) for length in self.lengths(request))
        verdicts = tuple(VERDICTS[i % 2 if is_mixed else 0] for i in range(len(rollouts)))
        return RolloutGroup(prompt=request.prompt, rollouts=rollouts, verdicts=verdicts)


@cache
def zeros(dtype: type) -> np.ndarray:
    return np.zeros(1 << 17, dtype)


def _rollout(length: int, version: int) -> Rollout:
    return Rollout(text="", token_ids_A=zeros(np.int32)[:length], engine_logprobs_A=zeros(np.float32)[:length],
                   truncated=False, policy_version=version)  # fmt: skip


@dataclass(eq=False)
class _Answer:
    request_id: int
    prompt_tokens: int
    length: int
    done: float = 0.0  # tokens, when it was taken in
    begun: float = 0.0  # the engine's step then
    end: float = 0.0
    base: float = 0.0  # tokens in the KV cache, less those since the engine's step 0


@dataclass
class VirtualEngine:
    """One engine: its time, what runs, what waits for a place or for room in the KV cache."""

    plan: Plan
    answers: Answers
    now: float = 0.0
    version: int = 0
    step: float = 0.0
    preempted: int = 0
    sampled: float = 0.0  # tokens
    _running: dict[_Answer, None] = field(default_factory=dict)  # in the order in which they came
    _ends: list[tuple[float, int, _Answer]] = field(default_factory=list)
    _waiting: deque[_Answer] = field(default_factory=deque)
    _left: dict[int, tuple[Request, list[_Answer], int]] = field(default_factory=dict)  # and the version that began it
    watermark: float = 0.0  # share of the KV cache that stays free when an answer is taken in
    _base: float = 0.0  # tokens in the KV cache, less those since step 0 of each that runs

    @property
    def cached(self) -> float:
        return self._base + len(self._running) * self.step

    def advance(self, requests: list[Request], dropped: list[int], seconds: float) -> tuple[list, Load]:
        """As rollout/api.py says, for a single stream."""
        begun, lengths = self.now, []
        for request_id in dropped:
            _, answers, _ = self._left.pop(request_id, (None, [], 0))
            for answer in answers:
                lengths.append(int(self._tokens(answer)))
                self._take_out(answer)
        for request in requests:
            tokens = len(request.prompt.token_ids_P)
            its = [_Answer(request.request_id, tokens, int(n)) for n in self.answers.lengths(request)]
            self._left[request.request_id] = (request, list(its), self.version)
            self._waiting.extend(its)
            self._prefill(tokens)
        finished: list[tuple[int, RolloutGroup]] = []
        while self._left and self.now < begun + seconds:
            self._play(begun + seconds, finished)
        return finished, Load(
            seconds=self.now - begun, running=len(self._running), waiting=len(self._waiting),
            kv_use=self.cached / self.plan.engine.kv_tokens, dropped_tokens=tuple(lengths),
        )  # fmt: skip

    def sleep(self) -> None:
        """What runs waits, in its order, and is computed again when it goes on."""
        for answer in reversed(list(self._running)):
            self._put_back(answer)

    def _prefill(self, tokens: float) -> None:
        self.now += tokens * self.plan.engine.flops_per_token / self.plan.machine.matmul_flops()

    def _play(self, until: float, finished: list[tuple[int, RolloutGroup]]) -> None:
        """To the end of the next answer, or as far as time and room in the cache allow."""
        kv, most = self.plan.engine.kv_tokens, self.plan.config.rollout.max_concurrent
        while self._waiting and len(self._running) < most:
            answer = self._waiting[0]
            needed = answer.prompt_tokens + answer.done + len(self._running)
            if self._running and self.cached + needed > (1 - self.watermark) * kv:
                break
            self._take_in(self._waiting.popleft())
        while self._ends[0][2] not in self._running or self._ends[0][2].end != self._ends[0][0]:
            heapq.heappop(self._ends)  # of an answer that was taken out
        batch = len(self._running)
        steps = min(self._ends[0][0] - self.step, max((kv - self.cached) / batch, 1.0))
        one = sum(decode_step(self.plan.engine, self.plan.machine, batch, self.cached + batch * steps / 2).values())
        steps = min(steps, max((until - self.now) / one, 0.01))
        self.step += steps
        self.now += steps * one
        self.sampled += steps * batch
        while self._ends and self._ends[0][0] <= self.step + 1e-6:
            end, _, answer = heapq.heappop(self._ends)
            if answer in self._running and answer.end == end:
                self._take_out(answer)
                self._end(answer, finished)
        while self.cached > kv and len(self._running) > 1:
            self._put_back(next(reversed(self._running)))
            self.preempted += 1

    def _tokens(self, answer: _Answer) -> float:
        """Sampled so far."""
        return answer.done + (self.step - answer.begun if answer in self._running else 0.0)

    def _take_in(self, answer: _Answer) -> None:
        if answer.done:
            self._prefill(answer.prompt_tokens + answer.done)
        answer.begun, answer.end = self.step, self.step + answer.length - answer.done
        self._running[answer] = None
        answer.base = answer.prompt_tokens + answer.done - self.step
        self._base += answer.base
        heapq.heappush(self._ends, (answer.end, id(answer), answer))

    def _put_back(self, answer: _Answer) -> None:
        """From what runs to the head of what waits."""
        answer.done = self._tokens(answer)
        self._take_out(answer)
        self._waiting.appendleft(answer)

    def _take_out(self, answer: _Answer) -> None:
        if answer in self._running:
            del self._running[answer]
            self._base -= answer.base
        elif answer in self._waiting:
            self._waiting.remove(answer)

    def _end(self, answer: _Answer, finished: list[tuple[int, RolloutGroup]]) -> None:
        request, left, version = self._left[answer.request_id]
        left.remove(answer)
        if not left:
            del self._left[answer.request_id]
            finished.append((answer.request_id, self.answers.group(request, version)))


class VirtualFleet:
    """The engines as a fleet, and the few of Ray's calls that a stream makes, on one clock."""

    def __init__(self, plan: Plan, answers: Answers, count: int) -> None:
        self.engines = {f"engine {i}": VirtualEngine(plan, answers) for i in range(count)}
        self.names, self.now = list(self.engines), 0.0
        self.wants_weights = self.is_empty = False
        self._handles = {name: SimpleNamespace(call=SimpleNamespace(remote=self._remote(name))) for name in self.names}

    @contextmanager
    def clock(self) -> Iterator[None]:
        """In the block streams live by this fleet's clock; outside of it by the real one, and by Ray."""
        calls = SimpleNamespace(wait=self._wait, get=lambda ref: ref.value)
        with mock.patch.multiple(stream_module, ray=calls, time=SimpleNamespace(monotonic=lambda: self.now)):
            yield

    def _remote(self, name: str) -> Callable[..., Any]:
        def advance(verb: str, arguments: tuple, timeout_s: float) -> Any:
            engine, (_, requests, dropped, seconds) = self.engines[name], arguments
            engine.now = max(engine.now, self.now)
            value = engine.advance(requests, dropped, seconds)
            return _Ref(engine.now, value)

        return advance

    def _wait(self, refs: list, num_returns: int = 1, timeout: float = 0.0) -> tuple[list, list]:
        first = min(ref.end for ref in refs)
        self.now = max(self.now, min(first, self.now + timeout))
        done = [ref for ref in refs if ref.end <= self.now][:num_returns]
        return done, []

    def handle(self, name: str) -> Any:
        return self._handles[name]

    def is_ready(self, name: str) -> bool:
        return True


@dataclass(eq=False)
class _Ref:
    end: float
    value: Any
