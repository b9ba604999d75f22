"""Seconds of a step by stage: a roofline of products, attention, memory and messages (efficiencies: hardware.toml).

    rollout    slowest engine, of a round and now and then a second one; plan/engine.py, plan/rounds.py
    verdict    grading beside the rollouts, by verdict.workers processes: what is left of it after the last answer
    hand-over  colocated: the optimizer's state to the host and back
    log-prob   forward pass of the answers of all updates but the first (and of all of them by a reference model)
    train      updates: forward and backward pass through the pipeline, reductions, optimizer
    sync       gather, broadcast and load of the weights

Stages follow one another, as in train.py (planner.py makes train_async.py's step of them, too). Each is split into what
it goes into, so that the largest part can be named.
"""

from dataclasses import dataclass

from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.buckets import bucket_bytes, num_tensors, sent_adapters
from megatron_nft.plan.engine import Engine
from megatron_nft.plan.hardware import Machine
from megatron_nft.plan.memory import weight_element_bytes
from megatron_nft.plan.parameters import RankParameters, layers_of_rank
from megatron_nft.plan.rollouts import rollout_round, second_round
from megatron_nft.plan.workload import Workload

BACKWARD_PRODUCTS, BACKWARD_ATTENTION, BACKWARD_MEMORY = 2.0, 2.5, 2.0
"""Backward over forward pass: two products for each one; FlashAttention computes the scores again."""
UPDATE_BYTES = 30
"""Read and written by AdamW for an element of its shard: gradient 4, master and moments 12 + 12, weight 2."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the step, in seconds."""

    name: str
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def largest_part(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


def plan_times(
    config: Config,
    hf: HFConfig,
    work: Workload,
    engine: Engine,
    machine: Machine,
    ranks: list[RankParameters],
    places: int,
) -> tuple[Stage, ...]:
    """All stages of a step.

    Args:
        places: answers that an engine works on at a time.
    """
    rollout = rollout_round(config, work, engine, machine, places)
    parts = dict(rollout.parts)
    if work.rounds.again:
        parts["second rounds"] = work.rounds.again * second_round(config, work, engine, machine, places).seconds
    actor = ActorTimes(config, hf, work, machine, ranks)
    stages = [
        Stage(name="rollout", parts=parts),
        Stage(name="verdict", parts={"grading": _grading(config, work, machine, rollout.seconds)}),
        Stage(name="log-prob", parts=actor.score()),
        Stage(name="train", parts=actor.train()),
        Stage(name="sync", parts=_sync(config, hf, engine, machine)),
    ]
    if config.is_colocated and config.cluster.device == "cuda":
        moved = max(r.optimizer_bytes(weight_element_bytes(config)) for r in ranks)
        if config.optimizer.optimizer_cpu_offload:  # so much of it is there already
            moved *= 1 - config.optimizer.optimizer_offload_fraction
        stages.insert(
            2, Stage(name="hand-over", parts={"optimizer to the host and back": machine.host_round_trip_s(moved)})
        )
    return tuple(stages)


def _grading(config: Config, work: Workload, machine: Machine, rollout_s: float) -> float:
    """After the last answer: its group, or what graders that are slower than the engines have left.

    The rate is of answers as they come: most of a group's are equal, and graded once."""
    rate, workers, group = machine.efficiency.verdicts_per_s, config.verdict.workers, config.rollout.group_size
    return max(group / (rate * min(workers, group)), work.answers / (rate * workers) - rollout_s)


class ActorTimes:
    """Scoring and training on the actor's ranks."""

    def __init__(
        self, config: Config, hf: HFConfig, work: Workload, machine: Machine, ranks: list[RankParameters]
    ) -> None:
        self.config, self.actor, self.hf, self.work = config, config.actor, hf, work
        self.machine, self.ranks = machine, ranks
        self.element = weight_element_bytes(config)
        # A mean microbatch of the heaviest data-parallel rank, and this rank's share of it.
        sequences = work.trained / work.updates / self.actor.dp / work.microbatches * machine.efficiency.imbalance
        self.tokens = sequences * work.sequence_tokens / self.actor.cp
        self.answer_tokens = sequences * work.answer_tokens / self.actor.cp
        self.pairs = sequences * work.mean_square_tokens / 2 / self.actor.cp  # of tokens that attend to one another

    def score(self) -> dict[str, float]:
        """Microbatches in one go, forward only: of all updates but the first, whose old log-probs are those of its own
        forward pass; with a reference model those of all updates once more."""
        algorithm, updates = self.config.algorithm, self.work.updates
        times = (updates - 1) / updates if algorithm.old_logprobs == "actor" else 0.0
        times += bool(algorithm.kl_weight)
        parts = self._through_pipeline(self.work.microbatches * self.work.updates, forward_only=True)
        return {name: times * seconds for name, seconds in parts.items()}

    def train(self) -> dict[str, float]:
        """All updates."""
        parts = self._through_pipeline(self.work.microbatches, forward_only=False)
        backward = parts["products"] * 2 / 3 / self.work.microbatches
        for name, seconds in self._update(backward).items():
            parts[name] = parts.get(name, 0.0) + seconds
        return {name: self.work.updates * seconds for name, seconds in parts.items()}

    def _through_pipeline(self, microbatches: int, *, forward_only: bool) -> dict[str, float]:
        """Seconds of one pass of so many microbatches: the slowest stage's time for each, and the bubble.

        The first microbatch goes through all stages, which with virtual stages are so much thinner; then the slowest
        one sets the pace.
        """
        stages = [self._stage(pp_rank, forward_only=forward_only) for pp_rank in range(self.actor.pp)]
        totals = [sum(parts.values()) for parts in stages]
        slowest = stages[totals.index(max(totals))]
        parts = {name: microbatches * seconds for name, seconds in slowest.items()}
        vpp = 1 if forward_only and self.actor.vpp == 1 else self.actor.vpp
        return parts | {"pipeline bubble": (sum(totals) - max(totals)) / vpp}

    def _stage(self, pp_rank: int, *, forward_only: bool) -> dict[str, float]:
        """Seconds of one microbatch on one pipeline rank, by what they go into."""
        layers = layers_of_rank(self.actor, self.hf.num_hidden_layers, pp_rank)
        again = 1 if self.actor.recompute == "full" else 0
        forward, backward = 1 + again, 0.0 if forward_only else 1.0
        if forward_only:
            forward = 1
        core = forward + (1 if self.actor.recompute == "selective" and not forward_only else 0)
        hf, actor, machine = self.hf, self.actor, self.machine
        fp8 = actor.precision.startswith("fp8")
        linear = 2 * hf.layer_parameters / actor.tp * self.tokens / machine.matmul_flops(fp8=fp8)
        attention = 4 * self.pairs * hf.num_attention_heads * hf.head_dim / actor.tp / machine.attention_flops
        memory = self._memory_bytes() / machine.bytes_per_s
        # Frozen weights have no gradient of their own: one product less. An adapter's own products are r wide.
        gradients = BACKWARD_PRODUCTS - (1 if self.config.lora.rank else 0)
        parts = {
            "products": layers * linear * (forward + gradients * backward),
            "attention": layers * attention * (core + BACKWARD_ATTENTION * backward),
            "norms, rope, SwiGLU": layers * memory * (forward + BACKWARD_MEMORY * backward),
            f"tensor-parallel messages {self._link(actor.tp, 1)}": layers * self._tp_seconds(forward, backward),
            f"expert-parallel messages {self._link(actor.ep, actor.expert_tp)}": self._ep_seconds(forward, backward)
            * layers,
            f"context-parallel messages {self._link(actor.cp, actor.tp)}": max(
                0.0, layers * self._cp_seconds(forward, backward) - layers * attention * forward
            ),
            f"pipeline messages {self._link(actor.pp, actor.tp * actor.cp * actor.dp)}": self._pp_seconds(backward)
            if actor.pp > 1
            else 0.0,
        }
        if pp_rank == actor.pp - 1:
            # Forward one product of hidden states and vocabulary; backward the logits again, and two gradients.
            products = 2 * hf.vocab_size / actor.tp * hf.hidden_size * self.answer_tokens
            products *= 1 + (1 + gradients) * backward
            blocks = (
                4 * hf.vocab_size / actor.tp * self.answer_tokens * (6 + 8 * backward)
            )  # fp32 logits, read and written
            parts["log-probs"] = products / machine.matmul_flops() + blocks / machine.bytes_per_s
        return parts

    def _link(self, size: int, stride: int) -> str:
        return self.machine.link_name(size, stride)

    def _memory_bytes(self) -> float:
        """Read and written by what is no product in a layer's forward pass."""
        hf, actor = self.hf, self.actor
        sp = actor.tp if actor.sequence_parallel else 1
        query, key = hf.num_attention_heads * hf.head_dim, hf.num_key_value_heads * hf.head_dim
        norms_and_residuals = 10 * hf.hidden_size / sp  # each: read and write; read two, write one
        rope_and_swiglu = (2 * (query + key) + 3 * hf.active_intermediate_size) / actor.tp
        return self.element * self.tokens * (norms_and_residuals + rope_and_swiglu)

    def _tp_seconds(self, forward: float, backward: float) -> float:
        """Of a layer: an all-gather and a reduce-scatter (or an all-reduce) around attention and MLP each.

        Backward with sequence parallelism the two inputs are gathered once more, for the weights' gradients.
        """
        actor, e = self.actor, self.machine.efficiency
        if actor.tp == 1:
            return 0.0
        size = self.tokens * self.hf.hidden_size * self.element * (actor.tp - 1) / actor.tp
        one = size / self.machine.link_bytes_per_s(actor.tp, 1)
        start = e.collective_us * 1e-6
        hidden = 0.3 if actor.tp_comm_overlap else 1.0  # share that the products beside them do not hide
        again = 2 if actor.sequence_parallel else 0
        return hidden * (4 * forward + (4 + again) * backward) * one + 4 * (forward + backward) * start

    def _ep_seconds(self, forward: float, backward: float) -> float:
        """Of a layer: every token goes to its experts and comes back, as its gradient does; nothing hides that."""
        actor, mixture = self.actor, self.hf.mixture
        if mixture is None or actor.ep == 1:
            return 0.0
        tokens = self.tokens / (actor.tp if actor.sequence_parallel else 1)
        size = tokens * mixture.experts_per_token * self.hf.hidden_size * self.element * (actor.ep - 1) / actor.ep
        one = size / self.machine.link_bytes_per_s(actor.ep, actor.expert_tp)
        start = self.machine.efficiency.collective_us * 1e-6
        share = len(self.hf.sparse_layers) / self.hf.num_hidden_layers
        return 2 * (forward + backward) * (one + start) * share

    def _cp_seconds(self, forward: float, backward: float) -> float:
        """Of a layer: keys and values go round; backward with their gradients. The attention beside them hides it."""
        actor = self.actor
        if actor.cp == 1:
            return 0.0
        size = 2 * self.hf.num_key_value_heads * self.hf.head_dim / actor.tp * self.tokens * self.element
        link = self.machine.link_bytes_per_s(actor.cp, actor.tp)
        return (actor.cp - 1) * size * (forward + 2 * backward) / link

    def _pp_seconds(self, backward: float) -> float:
        """Of a microbatch: hidden states one way, their gradients the other; virtual stages hide all but the start."""
        actor = self.actor
        size = self.tokens * self.hf.hidden_size * self.element / (actor.tp if actor.sequence_parallel else 1)
        link = self.machine.link_bytes_per_s(actor.pp, actor.tp * actor.cp * actor.dp)
        start = self.machine.efficiency.collective_us * 1e-6
        return (1 + backward) * (start * actor.vpp + (size / link if actor.vpp == 1 else 0.0))

    def _update(self, backward_s: float) -> dict[str, float]:
        """What an update does once: reduce gradients, update, gather weights.

        Args:
            backward_s: of a microbatch, beside which the two overlaps can hide.
        """
        actor, machine = self.actor, self.machine
        size = max(r.buffer_elements for r in self.ranks)
        group, stride = actor.dp * actor.cp, actor.tp
        reduce = gather = 0.0
        if group > 1:
            link = machine.link_bytes_per_s(group, stride) * group / (group - 1)
            reduce, gather = 4 * size / link, self.element * size / link
            if actor.overlap_grad_reduce:
                reduce = max(0.1 * reduce, reduce - backward_s)
            if actor.overlap_param_gather:
                gather = max(0.1 * gather, gather - backward_s / 2)
        edp = actor.tp * group // (actor.ep * actor.expert_tp)
        if (experts := max(r.expert_buffer_elements for r in self.ranks)) and edp > 1:
            link = machine.link_bytes_per_s(edp, actor.ep * actor.expert_tp) * edp / (edp - 1)
            reduce, gather = reduce + 4 * experts / link, gather + self.element * experts / link
        shard = max(max(r.shards) + max(r.expert_shards) for r in self.ranks)
        update = shard * UPDATE_BYTES / machine.bytes_per_s
        if self.config.optimizer.optimizer_cpu_offload:
            update += 6 * shard / machine.pcie_bytes_per_s
        passes = (
            3 * 4 * (size + experts) / machine.bytes_per_s
        )  # zero the gradients, look whether they are finite, their norm
        name = f"gradient and weight messages {self._link(group, stride)}"
        return {name: reduce + gather, "optimizer": update + passes}


def _sync(config: Config, hf: HFConfig, engine: Engine, machine: Machine) -> dict[str, float]:
    """Buckets one after the other; while engines load one, the actor gathers the next: the slower of the two counts."""
    actor, e = config.actor, machine.efficiency
    stages = [bucket_bytes(config, hf, pp_rank) for pp_rank in range(actor.pp)]
    total = float(sum(sum(sizes) for sizes in stages))
    carrier = config.carrier_traits
    rounds = carrier.num_rounds([len(sizes) for sizes in stages])
    tp_link, tp_speed = machine.link_name(actor.tp, 1), machine.link_bytes_per_s(actor.tp, 1)
    stride = actor.tp * actor.cp * actor.dp
    travel: dict[str, float] = {}
    if carrier.every_rank_sends:  # every stage's bucket goes to all devices, one stage after the other
        if actor.tp > 1:
            travel[f"gather {tp_link}"] = total / tp_speed
        if actor.pp > 1:
            name = f"broadcast {machine.link_name(actor.pp, stride)}"
            travel[name] = travel.get(name, 0.0) + total / machine.link_bytes_per_s(actor.pp, stride)
    elif carrier.crosses_nodes:  # leaders of all stages at once, to every worker; they gather meanwhile
        gather = max(sum(sizes) for sizes in stages) / tp_speed if actor.tp > 1 else 0.0
        broadcast = total / (machine.network_gb_s * 1e9 * e.network)
        travel = {"broadcast between nodes": broadcast} if broadcast > gather else {f"gather {tp_link}": gather}
    else:
        travel = {"copies to shared memory": total / machine.bytes_per_s}
    adapters = sent_adapters(config)
    prepared = 0 if adapters else 2 * engine.weight_bytes
    load = (total + prepared) / machine.bytes_per_s + num_tensors(hf, adapters) * e.load_tensor_us * 1e-6
    slower = travel if sum(travel.values()) > load else {"load": load}
    return {**slower, "control": 2 * rounds * e.sync_call_ms * 1e-3 + e.sync_fixed_s}
