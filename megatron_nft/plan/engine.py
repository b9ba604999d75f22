"""One vLLM engine: its memory, and how long it takes to generate.

A step of decoding reads the weights once and every answer's keys and values once, which is what it costs until the
batch is large enough for the products to matter. `generate` plays a round through: a fixed number of places, answers of
the lengths that the workload says, the next one starting when one ends; time passes from one end to the next. Its tail
begins when none is left to start: places are empty from there on, until the longest answer ends.
"""

import heapq
from dataclasses import dataclass
from functools import lru_cache

from megatron_nft.config import RolloutConfig
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.hardware import GIB, Machine

GOLDEN = 0.6180339887498949
"""Answers come in the order of i x this mod 1: evenly mixed lengths, the same every time."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Bytes of one worker (a device) of an engine, and bytes and FLOP of its steps."""

    weight_bytes: float
    read_bytes: float  # of the weights that a decoding step reads
    kv_bytes_per_token: float
    kv_bytes: float  # room for keys and values
    flops_per_token: float
    hidden_bytes: float  # of a token's hidden state, on every worker
    logits_bytes: float  # of an answer's logits in fp32, on one worker
    layers: int
    tp: int
    memory_bytes: float  # what it may take

    @property
    def kv_tokens(self) -> float:
        """Tokens that the KV cache holds."""
        return max(0.0, self.kv_bytes / self.kv_bytes_per_token)


def engine_of(hf: HFConfig, rollout: RolloutConfig, machine: Machine, *, on_cpu: bool) -> Engine:
    """A worker of one engine of this recipe."""
    element = 4 if rollout.dtype == "float32" else 2
    table = hf.vocab_size * hf.hidden_size / rollout.tp
    layers = hf.num_hidden_layers * hf.layer_parameters / rollout.tp
    stored = hf.num_hidden_layers * hf.stored_layer_parameters / rollout.tp  # a full batch reads every expert
    weights = element * (stored + table * (1 if hf.tie_word_embeddings else 2))
    memory = rollout.gpu_memory_fraction * machine.memory_bytes
    kv = memory - weights - machine.efficiency.engine_workspace_gib * GIB
    if on_cpu:
        kv = rollout.kv_cache_gib * GIB
        memory = weights + kv
    return Engine(
        weight_bytes=weights,
        read_bytes=element * (stored + table),
        kv_bytes_per_token=2 * element * hf.num_hidden_layers * hf.num_key_value_heads * hf.head_dim / rollout.tp,
        kv_bytes=kv,
        flops_per_token=2 * (layers + table),
        hidden_bytes=element * hf.hidden_size,
        logits_bytes=4 * hf.vocab_size,
        layers=hf.num_hidden_layers,
        tp=rollout.tp,
        memory_bytes=memory,
    )


@dataclass(frozen=True, kw_only=True)
class Round:
    """Answers of one engine, from the first token to the last."""

    parts: dict[str, float]  # seconds, by what they go into
    tail_s: float  # of these, at its end: fewer answers than places

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def generate(
    engine: Engine, machine: Machine, *, answers: int, prompts: float, prompt_tokens: float, lengths: tuple[float, ...],
    places: int,
) -> dict[str, float]:  # fmt: skip
    """Seconds of `play_round`, by what they go into."""
    return play_round(
        engine, machine, answers=answers, prompts=prompts, prompt_tokens=prompt_tokens, lengths=lengths, places=places
    ).parts


@lru_cache(maxsize=1024)
def play_round(
    engine: Engine, machine: Machine, *, answers: int, prompts: float, prompt_tokens: float, lengths: tuple[float, ...],
    places: int,
) -> Round:  # fmt: skip
    """What one engine takes for its share of a round.

    Args:
        answers: of this engine.
        prompts: different ones among them: each is prefilled once (prefix caching).
        places: answers at a time, given KV cache and max_concurrent.
    """
    seconds: dict[str, float] = {}
    order = [lengths[int(len(lengths) * (i * GOLDEN % 1.0))] for i in range(answers)]
    running: list[float] = []  # ends, in decoding steps since the round's begin
    started_sum = step = tail_s = 0.0  # started_sum: of the steps at which the running ones started
    upcoming = iter(order)
    for length in upcoming:
        heapq.heappush(running, length)
        if len(running) == places:
            break
    starts = {}  # end -> starts of those that end then
    for end in running:
        starts.setdefault(end, []).append(0.0)
    while running:
        end = running[0]
        steps, batch = end - step, len(running)
        if steps > 0:
            context = batch * (prompt_tokens + (step + end) / 2) - started_sum
            for name, spent in decode_step(engine, machine, batch, context).items():
                seconds[name] = seconds.get(name, 0.0) + steps * spent
                tail_s += steps * spent if batch < places else 0.0
            step = end
        heapq.heappop(running)
        started_sum -= starts[end].pop()
        if (length := next(upcoming, None)) is not None:
            heapq.heappush(running, step + length)
            starts.setdefault(step + length, []).append(step)
            started_sum += step
    seconds["prefill"] = prompts * prompt_tokens * engine.flops_per_token / machine.matmul_flops()
    return Round(parts=seconds, tail_s=tail_s)


def without_tail(
    engine: Engine, machine: Machine, *, answers: int, prompts: float, prompt_tokens: float, lengths: tuple[float, ...],
    places: int,
) -> float:  # fmt: skip
    """Seconds for so many answers among others that go on: an engine of which no place is ever empty."""
    mean = sum(lengths) / len(lengths)
    # Whoever looks finds long answers more often than short ones, and each halfway.
    context = prompt_tokens + sum(length**2 for length in lengths) / len(lengths) / mean / 2
    step_s = sum(decode_step(engine, machine, places, places * context).values())
    prefill = prompts * prompt_tokens * engine.flops_per_token / machine.matmul_flops()
    return answers * mean / places * step_s + prefill


def decode_step(engine: Engine, machine: Machine, batch: int, context: float) -> dict[str, float]:
    """Seconds of one decoding step of `batch` answers, which together attend to `context` tokens."""
    e = machine.efficiency
    weights = engine.read_bytes / machine.bytes_per_s
    products = batch * engine.flops_per_token / machine.matmul_flops()
    messages = 0.0
    if engine.tp > 1:
        size = 2 * batch * engine.hidden_bytes * (engine.tp - 1) / engine.tp
        messages = 2 * engine.layers * (size / machine.link_bytes_per_s(engine.tp, 1) + e.collective_us * 1e-6)
    own = e.decode_step_ms * 1e-3 + engine.layers * e.decode_layer_us * 1e-6 + batch * e.decode_answer_us * 1e-6
    return {
        "weights": weights,
        "keys and values": context * engine.kv_bytes_per_token / machine.bytes_per_s,
        "products": max(0.0, products - weights),
        f"messages {machine.link_name(engine.tp, 1)}": messages,
        "overhead": own + 4 * batch * engine.logits_bytes / machine.bytes_per_s,  # softmax, log-probs, sampling
    }
