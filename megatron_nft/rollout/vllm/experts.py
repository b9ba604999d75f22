"""Which experts a mixture's tokens went to: asked of vLLM, and given out for each answer. Called by engine.py.

The one place that knows that this differs between GPUs and CPUs. On a GPU vLLM returns them itself
(`enable_return_routed_experts`); that needs its second model runner, which a CPU hasn't. There a capture in the workers
does it: what the routers say in a step is cut by requests, and kept twice. A request keeps its own rows, the first that
each of its tokens got: those that its log-probs came from, whatever is computed again after it was preempted or given
other weights. And each slot of the KV cache keeps the row of the token whose keys it holds: a prompt that is found in
the prefix cache gets its rows from there.

Adapted to vLLM 0.32.0. To be removed, but for `OnGpu`, when vLLM's CPU engine returns routed experts.
Shape suffixes: _R tokens that the engine has read, L layers (all of the model's, a dense one's row says nothing), K
experts that a token goes to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from megatron_nft.rollout.api import EngineError
from megatron_nft.types import Prompt, Rollout


class ExpertsOfAnswers(Protocol):
    """What the engine asks."""

    def begin(self, name: str, vllm_id: str, num_answers: int) -> None:
        """A request is under way, under this id of vLLM's own."""

    def drop(self, names: Sequence[str]) -> None:
        """Requests that are not under way any more, unanswered."""

    def take(self, name: str, answers: Sequence[Any]) -> list[np.ndarray | None]:
        """[R, L, K] of each answer, in order, of a request that has got ready."""


class Unasked:
    """Of an engine that is not asked for them."""

    def begin(self, name: str, vllm_id: str, num_answers: int) -> None: ...

    def drop(self, names: Sequence[str]) -> None: ...

    def take(self, name: str, answers: Sequence[Any]) -> list[np.ndarray | None]:
        return [None] * len(answers)


class OnGpu(Unasked):
    """vLLM's own output."""

    def take(self, name: str, answers: Sequence[Any]) -> list[np.ndarray | None]:
        return [answer.routed_experts for answer in answers]


class OnCpu(Unasked):
    """The workers' capture."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._ids: dict[str, list[str]] = {}  # vLLM's, of a request's answers
        self._dropped: list[str] = []
        llm.collective_rpc("start_capture")

    def begin(self, name: str, vllm_id: str, num_answers: int) -> None:
        self.drop([name])  # the same request begins again
        # vllm/v1/engine/parallel_sampling.py, ParentRequest.get_child_info
        self._ids[name] = [vllm_id] if num_answers == 1 else [f"{i}_{vllm_id}" for i in range(num_answers)]

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            self._dropped += self._ids.pop(name, [])

    def take(self, name: str, answers: Sequence[Any]) -> list[np.ndarray | None]:
        dropped, self._dropped = self._dropped, []
        return self._llm.collective_rpc("take_captured", args=(self._ids.pop(name), dropped))[0]


def experts_of_answers(llm: Any, device: str, is_asked: bool) -> ExpertsOfAnswers:
    """What gives an engine's experts."""
    if not is_asked:
        return Unasked()
    return OnGpu() if device == "cuda" else OnCpu(llm)


def experts_settings(device: str, is_asked: bool) -> dict[str, Any]:
    """What vLLM is started with for it."""
    return {"enable_return_routed_experts": True} if is_asked and device == "cuda" else {}


def with_experts(prompt: Prompt, rollout: Rollout, experts_R: np.ndarray | None) -> Rollout:
    """The answer with the experts of every token that the engine has read: all but the last.

    Raises:
        EngineError: vLLM gave others.
    """
    read = len(prompt.token_ids_P) + len(rollout.token_ids_A) - 1
    if experts_R is None or len(experts_R) != read:
        given = "none" if experts_R is None else f"those of {len(experts_R)} tokens"
        raise EngineError(
            f"prompt {prompt.prompt_id}: the experts of {read} tokens were asked for, vLLM gave {given}; set "
            'actor.routing_replay = "off"'
        )
    return replace(rollout, experts_R=experts_R)


@dataclass
class _Request:
    rows: list[np.ndarray] = field(default_factory=list)  # [tokens, L, K], end to end from the first token on
    num_known: int = 0


class Capture:
    """In a worker: what a model's routers say, by requests. Rows come in layer by layer, and are cut after a step."""

    def __init__(self, runner: Any) -> None:
        from vllm.model_executor.layers.fused_moe.routed_experts_capturer import bind_routed_experts_capturer

        self._runner = runner
        model = runner.model_config
        dtype = np.uint8 if model.get_num_experts() <= 256 else np.uint16
        self._shape, self._dtype = (model.get_total_num_hidden_layers(), model.get_num_experts_per_tok()), dtype
        self._requests: dict[str, _Request] = {}
        self._step: dict[int, np.ndarray] = {}  # by layer
        if len(runner.kv_cache_config.kv_cache_groups) != 1 or runner.speculative_config is not None:
            raise EngineError(
                'actor.routing_replay = "engine" is, on a CPU, neither for KV caches of different kinds nor for tokens '
                "guessed ahead (rollout.vllm's speculative_config); leave these out, or set routing_replay"
            )
        table = runner.input_batch.block_table[0]
        self._by_slot = np.zeros((runner.kv_cache_config.num_blocks * table.block_size, *self._shape), dtype)
        bind_routed_experts_capturer(runner.get_model(), self)
        runner.get_model().register_forward_hook(self._after_a_step)

    @property
    def num_requests(self) -> int:
        """Whose rows are kept: those under way, and answers whose group is not ready."""
        return len(self._requests)

    def capture(self, layer: int, experts: Any) -> None:
        """A router's choice for the tokens of a step: vLLM calls it."""
        self._step[layer] = experts.numpy().astype(self._dtype)

    def _after_a_step(self, *_: Any) -> None:
        batch, count = self._runner.input_batch, self._runner.input_batch.num_reqs
        step, self._step = self._step, {}
        if not count or not step:  # a run to warm up
            return
        table = batch.block_table[0]
        ends = self._runner.query_start_loc.np[: count + 1]
        rows = np.zeros((int(ends[-1]), *self._shape), self._dtype)
        for layer, experts in step.items():
            rows[:, layer] = experts[: len(rows)]
        self._by_slot[table.slot_mapping.np[: len(rows)]] = rows
        for place, name in enumerate(batch.req_ids[:count]):
            request = self._requests.setdefault(name, _Request())
            begin, length = int(batch.num_computed_tokens_cpu[place]), int(ends[place + 1] - ends[place])
            if begin > request.num_known:
                self._add(request, self._cached(table, place, request.num_known, begin))
            if begin + length > request.num_known:
                self._add(request, rows[ends[place] + request.num_known - begin : ends[place + 1]])

    def _cached(self, table: Any, place: int, first: int, end: int) -> np.ndarray:
        """Rows of tokens whose keys and values the request has found in the cache."""
        positions = np.arange(first, end)
        blocks = table.block_table.np[place, positions // table.block_size]
        return self._by_slot[blocks.astype(np.int64) * table.block_size + positions % table.block_size]

    def _add(self, request: _Request, rows: np.ndarray) -> None:
        request.rows.append(rows)
        request.num_known += len(rows)

    def take(self, names: Sequence[str], dropped: Sequence[str]) -> list[np.ndarray]:
        """The rows of requests that have ended; they are forgotten, those of `dropped` too."""
        for name in dropped:
            self._requests.pop(name, None)
        return [np.concatenate(self._requests.pop(name).rows) for name in names]


class CapturesExperts:
    """Verbs that a vLLM worker gets (receive.py, `RegisterBackend`)."""

    def start_capture(self) -> None:
        """On the first of an engine's workers: all route alike."""
        self.capture_of_experts = Capture(self.model_runner) if self.rank == 0 else None

    def take_captured(self, names: Sequence[str], dropped: Sequence[str]) -> list[np.ndarray] | None:
        """See `Capture.take`; None on the others."""
        return self.capture_of_experts.take(names, dropped) if self.capture_of_experts else None

    def num_captured(self) -> int:
        """Requests of which rows are kept, on the first worker."""
        return self.capture_of_experts.num_requests if self.capture_of_experts else 0
