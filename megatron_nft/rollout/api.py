"""What an engine is, and what it is asked: the language of driver (cluster/, groups/) and engines (rollout/vllm).

A request is a prompt under way: it is given to an engine once, and its answers come back as one whole group. Which
engine answers it, beside which others, and over how many weight syncs is no part of it: its answers' seeds are made of
its own `seed_id`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_nft.types import Prompt, RolloutGroup

CANARY = "canary"
"""The stream of run/canary.py's requests, which find nothing in a cache and leave nothing there."""


class EngineError(RuntimeError):
    """The engine can't do what was asked: wrong state, wrong weights or a request that it refuses."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are sampled. The same seed, prompts and weights give the same answers: vary it between rounds."""

    group_size: int  # answers per prompt
    temperature: float  # 0: greedy
    top_p: float = 1.0
    max_answer_tokens: int
    seed: int
    with_experts: bool = False  # mixtures: the answers say which experts the engine chose (routing replay)
    top_logprobs: int = 0  # likeliest tokens at each place, whose log-probs an answer brings besides its own

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.group_size > 1:
            raise ValueError(
                f"temperature 0 gives {self.group_size} equal answers; set group_size = 1 or a temperature above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt that an engine is asked to answer while it answers others."""

    request_id: int  # unique in its stream, counted up
    prompt: Prompt
    seed_id: str  # of which the answers' seeds are made: the prompt's id, or that with "#2" if it comes again
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Load:
    """What an engine had to do when an `advance` was over, for all streams."""

    seconds: float  # that it has worked
    running: int = 0  # answers of its last decode step
    waiting: int = 0  # answers that wait for a place beside those, or for room in the KV cache
    kv_use: float = 0.0  # share of the KV cache
    dropped_tokens: tuple[int, ...] = ()  # how long the unfinished answers were that this call has dropped


@dataclass
class DecodeSteps:
    """What an engine had to do in each of its decode steps, added up."""

    steps: int = 0
    running: int = 0  # answers being decoded
    waiting: int = 0  # answers that have not begun
    kv_use: float = 0.0  # share of the KV cache in use
    kv_use_max: float = 0.0

    def add(self, running: int, waiting: int, kv_use: float) -> None:
        """One more step."""
        self.steps, self.running, self.waiting = self.steps + 1, self.running + running, self.waiting + waiting
        self.kv_use, self.kv_use_max = self.kv_use + kv_use, max(self.kv_use_max, kv_use)


class Engine(Protocol):
    """One rollout engine, in its own process. Starting it (its constructor) is the tenth verb."""

    policy_version: int

    def advance(
        self, stream: str, requests: list[Request], dropped: list[int], seconds: float
    ) -> tuple[list[tuple[int, RolloutGroup]], Load]:
        """Takes a stream's requests in, and works on all that are under way for about so many seconds, in whole decode
        steps. `dropped`: earlier requests of the stream that are not wanted any more. Nor is one whose id is asked
        again: the stream before was cut short, by the death of a rank for instance.

        Returns:
            The stream's groups that have got ready, with their request's id and without verdicts; what the
            engine has to do.

        Raises:
            EngineError: the weights are not whole, or a prompt is refused.
        """

    def decode_steps(self) -> dict[str, DecodeSteps]:
        """Its steps since the last call, by the stream of `advance`."""

    def forget(self) -> None:
        """Drops the requests of all streams: another run asks from here on."""

    def start_update(self, names: list[str]) -> None:
        """Begins a weight update that will bring these HF parameters; until it has finished nothing is generated."""

    def update(self, manifests: list[dict[str, Any]]) -> None:
        """Loads one bucket of each pipeline stage (weights/wire.py)."""

    def finish_update(self, policy_version: int) -> None:
        """Checks that every parameter has come, and stamps `policy_version` on every token from here on."""

    def sleep(self) -> None:
        """Gives the memory of weights and KV cache back."""

    def wake(self, what: str) -> None:
        """Takes the memory of "weights" or of the "kv_cache" again."""

    def shutdown(self) -> None:
        """Ends the engine and frees its memory."""


def requests_of(prompts: Sequence[Prompt], sampling: Sampling, first_id: int = 0) -> list[Request]:
    """A round of prompts as requests. A prompt that comes again in it (where an epoch ends, say) has its own seed."""
    seen: Counter[str] = Counter()
    requests = []
    for request_id, prompt in enumerate(prompts, first_id):
        seen[prompt.prompt_id] += 1
        count = seen[prompt.prompt_id]
        seed_id = prompt.prompt_id if count == 1 else f"{prompt.prompt_id}#{count}"
        requests.append(Request(request_id=request_id, prompt=prompt, seed_id=seed_id, sampling=sampling))
    return requests


def answer_here(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[RolloutGroup]:
    """Has an engine of this process answer prompts to the end; the groups in the prompts' order."""
    requests, groups = requests_of(prompts, sampling), {}
    new, call_s = requests, 1.0
    while len(groups) < len(requests):
        finished, _ = engine.advance("here", new, [], call_s)
        new = []
        for request_id, group in finished:
            groups[request_id] = group
            if on_progress:
                on_progress(len(groups), len(requests))
    return [groups[request.request_id] for request in requests]
