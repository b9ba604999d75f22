"""Memory by rank and phase: what lies on a device, and what on a node's host.

Phases, in the order of a step:

    rollout    engines hold weights and keys and values; colocated actors keep their weights and nothing else, from
               before the engines start (run/parts.py, begin_build)
    log-prob   the forward pass of scoring
    train      forward and backward pass, optimizer
    hand-over  colocated: the first bucket is gathered beside what training holds
    sync       buckets beside what training holds; colocated the engines have woken: their weights, empty as yet, are
               beside the actor's own, which has given back gradients, optimizer and what it cached (cluster/turns.py)

Colocated engines are asleep in log-prob, train and hand-over, and keep some memory then.
"""

from dataclasses import dataclass, field

from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.activations import Shape, activations, layer_tensors
from megatron_nft.plan.buckets import largest_bucket_bytes
from megatron_nft.plan.engine import Engine
from megatron_nft.plan.hardware import GIB, Machine
from megatron_nft.plan.parameters import RankParameters, layers_of_rank
from megatron_nft.plan.workload import Workload

BUCKETS_IN_USE = 2
OBJECT_STORE_BYTES = 256 << 20
"""Of a node's Ray: batches of token ids pass through it."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes on one device in one phase, by what they are."""

    phase: str
    who: str  # "actor stage 3", "engine"
    parts: dict[str, float]
    limit: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


@dataclass(frozen=True, kw_only=True)
class Memory:
    """All of it."""

    usages: tuple[Usage, ...]
    host_parts: dict[str, float]  # bytes on the fullest node
    host_limit: float
    places: int  # answers that an engine works on at a time, at their mean length
    problems: tuple[str, ...] = field(default=())

    @property
    def fits(self) -> bool:
        return not self.problems

    def worst(self, phase: str) -> Usage | None:
        """The device that is fullest in a phase."""
        return max((u for u in self.usages if u.phase == phase), key=lambda u: u.total, default=None)

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(usage.phase for usage in self.usages))


def weight_element_bytes(config: Config) -> int:
    """Of the actor's weights. (FP8 products hold copies of them; with fp8_param the weights are FP8 themselves.)"""
    return 4 if config.actor.precision == "fp32" else 2


def plan_memory(
    config: Config, hf: HFConfig, work: Workload, engine: Engine, machine: Machine, ranks: list[RankParameters]
) -> Memory:
    """Of every pipeline rank, and of an engine.

    Args:
        ranks: `parameters_of_rank` of every pipeline rank.
    """
    largest_buckets = [largest_bucket_bytes(config, hf, stage) for stage in range(config.actor.pp)]
    usages = [
        usage
        for pp_rank in range(config.actor.pp)
        for usage in _actor(config, hf, work, engine, machine, ranks, largest_buckets, pp_rank)
    ]
    on_cpu = config.cluster.device == "cpu"
    engine_parts = {
        "engine weights": engine.weight_bytes,
        "keys and values": max(engine.kv_bytes, 0.0),
        "workspace": 0.0 if on_cpu else machine.efficiency.engine_workspace_gib * GIB,
    }
    if not config.is_colocated:
        usages.append(Usage(phase="rollout", who="engine", parts=engine_parts, limit=machine.memory_bytes))
        receiving = {**engine_parts, "buckets": float(max(largest_buckets))}
        usages.append(Usage(phase="sync", who="engine", parts=receiving, limit=machine.memory_bytes))
    host = _host(config, hf, work, engine, machine, ranks, largest_buckets, usages)
    problems = [*_device_problems(config, usages, machine)]
    context = work.prompt_tokens + work.answer_tokens
    places = min(config.rollout.max_concurrent, int(engine.kv_tokens / context))
    if engine.kv_tokens < work.longest_sequence:
        problems.append(
            f"rollout: an engine's KV cache holds {engine.kv_tokens:,.0f} tokens, and a sequence may have "
            f"{work.longest_sequence:,}; raise rollout.tp or rollout.gpu_memory_fraction"
        )
    host_limit = machine.host_memory_gib * GIB
    if sum(host.values()) > host_limit:
        largest = max(host, key=lambda name: host[name])
        problems.append(
            f"host: {sum(host.values()) / GIB:,.0f} GiB of {machine.host_memory_gib:,.0f} GiB a node, most of it "
            f"{largest}; offload less, or use more nodes"
        )
    return Memory(
        usages=tuple(usages), host_parts=host, host_limit=host_limit, places=max(places, 1), problems=tuple(problems)
    )


def _actor(
    config: Config,
    hf: HFConfig,
    work: Workload,
    engine: Engine,
    machine: Machine,
    ranks: list[RankParameters],
    largest_buckets: list[int],
    pp_rank: int,
) -> list[Usage]:
    actor, mine, on_cpu = config.actor, ranks[pp_rank], config.cluster.device == "cpu"
    element = weight_element_bytes(config)
    optimizer = float(mine.optimizer_bytes(element))
    if config.optimizer.optimizer_cpu_offload:
        optimizer *= 1 - config.optimizer.optimizer_offload_fraction
    is_fp8 = actor.precision.startswith("fp8")
    weights = {"weights": float(mine.weight_bytes(element))}
    if actor.fp8_param:
        weights["weights"] -= mine.linear_elements
    elif is_fp8:  # TransformerEngine's copies, as they are and transposed
        weights["FP8 copies of weights"] = 2.0 * mine.linear_elements
    if config.algorithm.kl_weight and not config.base_is_reference:
        weights["reference model"] = float(element * mine.elements)
    device = {} if on_cpu else {"CUDA and NCCL": machine.efficiency.device_gib * GIB}
    state = {**weights, "gradients": float(mine.gradient_bytes), "optimizer": optimizer, **device}
    tokens = work.microbatch_tokens / actor.cp
    answers = tokens * work.answer_tokens / work.sequence_tokens
    kept = activations(
        hf,
        actor,
        pp_rank=pp_rank,
        layers=layers_of_rank(actor, hf.num_hidden_layers, pp_rank),
        tokens=tokens,
        answer_tokens=answers,
        microbatches=work.microbatches,
        is_local=on_cpu,
    )
    shape = Shape.of(hf, actor)
    # Backward, in a layer: gradients of gate and up, of their product, and two hidden states.
    workspace = tokens * shape.b * (3 * shape.f + 2 * shape.h)
    layer = sum(t.bytes_per_token for t in layer_tensors(shape, is_local=on_cpu)) * tokens
    slack = 1 + machine.efficiency.fragmentation
    logits = logits_bytes(config, hf, answers) * slack if pp_rank == actor.pp - 1 else 0.0
    training = {
        "activations": (kept.saved + kept.messages) * slack,
        "logits": logits,
        "workspace": workspace * slack,
    }
    scoring = {"activations": layer * slack, "logits": logits, "workspace": 0.0}
    on_device = not config.carrier_traits.is_in_host_memory
    buckets = {"buckets": _bucket_bytes(config, largest_buckets, pp_rank) if on_device else 0.0}
    gathered = _gather_bytes(config, largest_buckets[pp_rank]) if on_device else 0.0
    gathering = {"buckets": buckets["buckets"] + gathered}
    limit, who = machine.memory_bytes, f"actor stage {pp_rank}"

    def usage(phase: str, *parts: dict[str, float]) -> Usage:
        merged = {name: size for part in parts for name, size in part.items() if size}
        return Usage(phase=phase, who=who, parts=merged, limit=limit)

    shared = config.is_colocated and not on_cpu
    asleep = {"engine asleep": machine.efficiency.engine_asleep_gib * GIB if shared else 0.0}
    usages = [usage("log-prob", state, scoring, buckets, asleep), usage("train", state, training, buckets, asleep)]
    if not config.is_colocated:
        return [*usages, usage("sync", state, gathering)]
    return [
        usage("rollout", weights, device, buckets, {"engine": engine.memory_bytes}),
        *usages,
        usage("hand-over", state, gathering, asleep),
        usage("sync", weights, device, gathering, asleep, {"engine weights": engine.weight_bytes}),
    ]


def logits_bytes(config: Config, hf: HFConfig, answer_tokens: float) -> float:
    """actor/logprobs.py: a block of fp32 logits, its product and gradient, gradients of hidden states and rows.

    In fp32 the block is both; the entropy needs its exponentials beside it.

    Args:
        answer_tokens: of a microbatch on this rank.
    """
    block = config.actor.logits_mib << 20
    element = weight_element_bytes(config)
    rows = hf.vocab_size / config.actor.tp * hf.hidden_size * element
    copies = 1 + config.observe.entropy if element == 4 else 2  # in bf16, of product and gradient, half each
    return block * copies + rows + answer_tokens * hf.hidden_size * (4 + element)


def _bucket_bytes(config: Config, largest_buckets: list[int], pp_rank: int) -> float:
    """The two buffers of an actor rank, for as long as it lives: of its stage's largest bucket, or of any stage's."""
    largest = max(largest_buckets) if config.carrier_traits.every_rank_sends else largest_buckets[pp_rank]
    return float(BUCKETS_IN_USE * largest)


def _gather_bytes(config: Config, largest_bucket: int) -> float:
    """While a bucket is gathered: this rank's shards of it as one message, and the messages of all."""
    senders = max(config.actor.tp, config.actor.expert_tp * config.actor.ep)
    return (1 + 1 / senders) * largest_bucket if senders > 1 else 0.0


CPU_PROCESS_BYTES = int(0.6 * GIB)
"""Of a process on a CPU: Python, torch, Megatron or vLLM."""


def _host(
    config: Config,
    hf: HFConfig,
    work: Workload,
    engine: Engine,
    machine: Machine,
    ranks: list[RankParameters],
    largest_buckets: list[int],
    usages: list[Usage],
) -> dict[str, float]:
    """Bytes on the fullest node: as many actor ranks as it has devices, and engines' workers beside them."""
    actor, element = config.actor, weight_element_bytes(config)
    actors_here = min(actor.world_size, machine.gpus_per_node)
    workers = config.rollout.engines * config.rollout.tp
    if config.cluster.device == "cpu":  # one memory for all
        training = [u.total for u in usages if u.phase == "train"]
        parts = {
            "processes": float((actor.world_size + workers + config.verdict.workers) * CPU_PROCESS_BYTES),
            "actor ranks": sum(training) * actor.world_size / actor.pp,
            "engines": config.rollout.engines * (engine.weight_bytes * engine.tp + engine.kv_bytes),
        }
    else:
        workers_here = min(workers, machine.gpus_per_node) if config.is_colocated else 0
        graders = config.verdict.workers * GRADER_BYTES
        parts = {"processes": (actors_here + workers_here) * machine.efficiency.process_gib * GIB + graders}
    optimizer = max(r.optimizer_bytes(element) for r in ranks)
    offloaded = optimizer if config.is_colocated else 0.0
    if config.optimizer.optimizer_cpu_offload:
        offloaded = max(offloaded, optimizer * config.optimizer.optimizer_offload_fraction)
    if offloaded and config.cluster.device == "cuda":
        parts["optimizer"] = offloaded * actors_here
    if config.syncs_adapter and config.is_colocated:  # what no sync brings stays there while an engine sleeps
        parts["engine weights"] = engine.weight_bytes * min(workers, machine.gpus_per_node)
    on_host = 0.0
    for pp_rank in range(actor.pp):
        tokens = work.microbatch_tokens / actor.cp
        layers = layers_of_rank(actor, hf.num_hidden_layers, pp_rank)
        on_host = max(
            on_host,
            activations(
                hf, actor, pp_rank=pp_rank, layers=layers, tokens=tokens, answer_tokens=tokens,
                microbatches=work.microbatches, is_local=False,
            ).host,
        )  # fmt: skip
    if on_host:
        parts["activations"] = on_host * actors_here
    if config.carrier_traits.is_in_host_memory:
        parts["buckets"] = sum(_bucket_bytes(config, largest_buckets, stage) for stage in range(actor.pp))
    parts["Ray's object store"] = OBJECT_STORE_BYTES
    return parts


GRADER_BYTES = GIB
"""Of a grading process; answers with big integers take most of that (benchmarks of math-verify: 828 MiB)."""


def _device_problems(config: Config, usages: list[Usage], machine: Machine) -> list[str]:
    """One sentence per phase that doesn't fit. On a CPU it is the host that must."""
    if config.cluster.device == "cpu":
        return []
    problems = []
    for phase in dict.fromkeys(u.phase for u in usages):
        worst = max((u for u in usages if u.phase == phase), key=lambda u: u.total - u.limit)
        if not worst.fits:
            largest = max(worst.parts, key=lambda name: worst.parts[name])
            problems.append(
                f"{phase}: {worst.who} needs {worst.total / GIB:.1f} GiB of {machine.name}'s {machine.memory_gib:g}, "
                f"most of it {largest} ({worst.parts[largest] / GIB:.1f}); {REMEDIES.get(largest, 'use more devices')}"
            )
    return problems


REMEDIES = {
    "weights": "raise actor.tp or actor.pp",
    "gradients": "raise actor.tp or actor.pp",
    "optimizer": "raise actor.dp, actor.tp or actor.pp, or set optimizer.optimizer_cpu_offload",
    "activations": 'lower actor.tokens_per_microbatch, raise actor.tp or actor.cp, or set actor.recompute = "full"',
    "workspace": "lower actor.tokens_per_microbatch, or raise actor.cp",
    "logits": "lower actor.logits_mib, or raise actor.tp",
    "engine": "lower rollout.gpu_memory_fraction",
    "engine weights": "raise rollout.tp",
    "keys and values": "lower rollout.gpu_memory_fraction",
    "buckets": "lower weights.bucket_mib",
}
"""Largest part of a phase that doesn't fit -> what to change."""
