"""A rank's parameters, and the bytes that Megatron allocates for them: buffers, padding, the optimizer's shards.

An HFConfig and the actor's layout come in; for each pipeline rank, the elements of its parameter and gradient buffers
and of each data-parallel rank's optimizer shard go out, exactly (tests/parallel/test_plan.py compares them with the
real ones). Experts that are spread over ranks have buffers of their own. Which parameters there are and how ranks share
them, the model's family says. The rules of the buffers are those of megatron-core 0.16-0.19,
distributed/param_and_grad_buffer.py: parameters lie in reverse order, each at a multiple of 64 elements, buckets end at
a multiple of lcm(ranks, 128), a tied embedding has a bucket of its own. The order is that of local layers;
TransformerEngine's differs, which moves padding only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from math import lcm

from megatron_nft.config import ActorConfig
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.families.lora import Adapters, adapter_table
from megatron_nft.families.registry import table_of
from megatron_nft.families.rules import TRANSFORMER_ENGINE, AxisPlace, ExpertRule, Place, Rule

LAYER, EMBEDDING = "decoder.layers.{layer}.", "embedding.word_embeddings.weight"
ORDER = (
    "input_layernorm",
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "pre_mlp_layernorm",
    "mlp.router",
    "mlp.experts.local_experts.{slot}.linear_fc1",
    "mlp.experts.local_experts.{slot}.linear_fc2",
    "mlp.shared_experts",
    "mlp.shared_experts.linear_fc1",
    "mlp.shared_experts.linear_fc2",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
"""A local layer's modules as Megatron registers them, each with its weight before its bias."""
PARAMETER_ALIGNMENT = 64
BUCKET_ALIGNMENT = 128
SMALLEST_DEFAULT_BUCKET, DEFAULT_BUCKET_PER_RANK = 40_000_000, 1_000_000
"""Megatron's default of ddp_bucket_size: the larger of the first and the second times the data-parallel ranks."""
MASTER_BYTES, MOMENT_BYTES = 4, 8
"""Of an element of the optimizer's shard: the fp32 copy of a bf16 weight, and Adam's two moments."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of one tensor-parallel rank."""

    name: str  # Megatron's, less the layer's number
    elements: int
    is_linear: bool = False  # a linear module's matrix: what FP8 is for
    is_tied: bool = False  # an embedding that another pipeline stage holds, too
    is_expert: bool = False


@dataclass(frozen=True)
class Bucket:
    """A stretch of a buffer that travels as one message; each rank of the group has an equal share of it."""

    elements: int
    spans: tuple[tuple[int, int], ...]  # (begin, end) of its parameters, counted from the bucket's begin


def layers_of_rank(actor: ActorConfig, num_layers: int, pp_rank: int) -> int:
    """Layers of a pipeline rank, over all its virtual stages."""
    first, last = actor.num_layers_in_first_pipeline_stage, actor.num_layers_in_last_pipeline_stage
    if pp_rank == 0 and first is not None:
        return first
    if pp_rank == actor.pp - 1 and last is not None:
        return last
    ends = [n for n in (first, last) if n is not None]
    return (num_layers - sum(ends)) // (actor.pp - len(ends))


def layers_of_chunk(actor: ActorConfig, num_layers: int, pp_rank: int, vp_stage: int) -> range:
    """Numbers of the layers of one virtual stage: each round of virtual stages goes through all ranks."""
    sizes = [layers_of_rank(actor, num_layers, rank) // actor.vpp for rank in range(actor.pp)]
    begin = vp_stage * sum(sizes) + sum(sizes[:pp_rank])
    return range(begin, begin + sizes[pp_rank])


def layer_rules(hf: HFConfig, layer: int, ep: int = 1) -> list[Rule]:
    """Of one local layer's parameters on one rank, in the order in which Megatron registers them: expert by expert."""
    rules = [rule for rule in table_of(hf) if rule.megatron.startswith(LAYER) and rule.only_in != TRANSFORMER_ENGINE]
    order = {f"{LAYER}{module}": number for number, module in enumerate(ORDER)}
    mine = (rule for rule in rules if rule.is_in(layer))
    found: list[Rule] = []
    for is_expert, group in groupby(
        sorted(mine, key=lambda rule: order.get(rule.megatron.rpartition(".")[0], len(order))),
        lambda rule: isinstance(rule, ExpertRule),
    ):
        rules = list(group)
        found += rules * (rules[0].slots(ep) if is_expert else 1)
    return found


def chunk_rules(hf: HFConfig, layers: Sequence[int], *, first: bool, last: bool, ep: int = 1) -> list[Rule]:
    """Of one virtual stage on one rank, in order.

    Args:
        layers: their numbers.
        first, last: whether it has the embedding, and the final norm with the output layer, unless that is tied.
    """
    outside = [rule for rule in table_of(hf) if not rule.megatron.startswith(LAYER)]
    begin = [rule for rule in outside if rule.megatron == EMBEDDING]
    end = [rule for rule in outside if rule.megatron != EMBEDDING]
    inside = [rule for layer in layers for rule in layer_rules(hf, layer, ep)]
    return [*(begin if first else ()), *inside, *(end if last else ())]


def chunk_parameters(
    hf: HFConfig, place: Place, layers: Sequence[int], *, first: bool, last: bool, tied: bool
) -> list[Parameter]:
    """As `chunk_rules`, in elements of one rank.

    Args:
        place: of any rank, with the sizes of the axes tp, etp and ep.
        tied: the output layer is the embedding, of which the last stage has a copy.
    """
    ep = next((axis.size for axis in place if axis.axis == "ep"), 1)
    rules = chunk_rules(hf, layers, first=first, last=last, ep=ep)
    chunk = [_parameter(rule, place, is_tied=tied) for rule in rules]
    if last and tied:
        embedding, _ = table_of(hf).find(EMBEDDING)
        chunk.append(replace(_parameter(embedding, place, is_tied=True), name="output_layer.weight"))
    return chunk


def _parameter(rule: Rule, place: Place, *, is_tied: bool) -> Parameter:
    name = rule.megatron.removeprefix(LAYER)
    is_linear = ".linear_" in name and name.endswith(".weight")
    is_tied = is_tied and rule.megatron == EMBEDDING
    return Parameter(name, rule.num_elements(place), is_linear, is_tied, isinstance(rule, ExpertRule))


def lay_out_buffer(parameters: Sequence[Parameter], *, ranks: int, bucket_size: int | None) -> tuple[Bucket, ...]:
    """The buffer of one virtual stage.

    Args:
        ranks: over which the optimizer's state is sharded: data- and context-parallel.
        bucket_size: a bucket closes once it has so many elements; None: never.
    """
    buckets: list[Bucket] = []
    spans: list[tuple[int, int]] = []
    begin = end = 0  # of the open bucket, in the buffer

    def close(end: int) -> int:
        nonlocal begin
        padded_end = _round_up(end, lcm(ranks, BUCKET_ALIGNMENT))
        buckets.append(Bucket(padded_end - begin, tuple((b - begin, e - begin) for b, e in spans)))
        spans.clear()
        begin = padded_end
        return padded_end

    for parameter in reversed(parameters):
        start = _round_up(end, PARAMETER_ALIGNMENT)
        if parameter.is_tied and spans:
            start = close(start)
        end = start + parameter.elements
        spans.append((start, end))
        if parameter.is_tied or (bucket_size is not None and end - begin >= bucket_size):
            end = close(end)
    if spans:
        close(end)
    return tuple(buckets)


def shard_elements(buckets: Sequence[Bucket], ranks: int) -> list[int]:
    """Elements of parameters, without padding, in each rank's share of the buckets."""
    shards = [0] * ranks
    for bucket in buckets:
        share = bucket.elements // ranks
        for begin, end in bucket.spans:
            for rank in range(begin // share, (end - 1) // share + 1):
                shards[rank] += min(end, (rank + 1) * share) - max(begin, rank * share)
    return shards


@dataclass(frozen=True, kw_only=True)
class RankParameters:
    """What a pipeline rank's parameters take, in elements: the same on all of its ranks, but for the shards."""

    elements: int  # of the model, without padding
    stage_elements: int  # of all ranks that hold the stage together, what is whole on each of them counted for each
    linear_elements: int  # of linear modules
    buffer_elements: int  # of the parameter buffers, and of the gradient buffers
    shards: tuple[int, ...]  # of the optimizer's state, by rank of the data- and context-parallel group
    expert_buffer_elements: int = 0  # the same of experts that are spread over ranks, which have buffers of their own
    expert_shards: tuple[int, ...] = (0,)  # by rank of the expert-data-parallel group
    frozen_elements: int = 0  # in no buffer: the model's, where adapters are trained

    @property
    def all_buffer_elements(self) -> int:
        return self.buffer_elements + self.expert_buffer_elements

    def weight_bytes(self, element_bytes: int) -> int:
        return (self.all_buffer_elements + self.frozen_elements) * element_bytes

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.all_buffer_elements

    def optimizer_bytes(self, element_bytes: int, rank: int | None = None, expert_rank: int = 0) -> int:
        """Of one rank of the two groups; None: of one that has most of both.

        fp32 weights are their own masters.
        """
        if rank is None:
            elements = max(self.shards) + max(self.expert_shards)
        else:
            elements = self.shards[rank] + self.expert_shards[expert_rank]
        return elements * (MOMENT_BYTES + (MASTER_BYTES if element_bytes < 4 else 0))


def parameters_of_rank(
    hf: HFConfig, actor: ActorConfig, pp_rank: int, adapters: Adapters | None = None
) -> RankParameters:
    """All virtual stages of a pipeline rank.

    Args:
        adapters: that are trained in place of the model.
    """
    bucket_size = None
    if actor.overlap_grad_reduce and pp_rank == 0:  # Megatron cuts the first rank's first stage only
        bucket_size = actor.ddp_bucket_size or max(SMALLEST_DEFAULT_BUCKET, DEFAULT_BUCKET_PER_RANK * actor.dp)
    chunks = [layers_of_chunk(actor, hf.num_hidden_layers, pp_rank, stage) for stage in range(actor.vpp)]
    if hf.mixture is None or not hf.mixture.dense_layers:  # all layers are alike: one answer for many ranks
        chunks = [range(len(chunk)) for chunk in chunks]
    return _rank_parameters(
        hf,
        (AxisPlace("tp", 0, actor.tp), AxisPlace("etp", 0, actor.expert_tp), AxisPlace("ep", 0, actor.ep)),
        tuple(chunks),
        pp_rank == 0,
        pp_rank == actor.pp - 1,
        actor.dp * actor.cp,
        actor.tp * actor.dp * actor.cp // (actor.ep * actor.expert_tp),
        bucket_size,
        adapters,
    )


@lru_cache(maxsize=4096)
def _rank_parameters(
    hf: HFConfig,
    place: Place,
    layers: tuple[range, ...],
    first: bool,
    last: bool,
    ranks: int,
    expert_ranks: int,
    bucket_size: int | None,
    adapters: Adapters | None,
) -> RankParameters:
    tied, vpp = hf.tie_word_embeddings and not (first and last), len(layers)
    sizes = {axis.axis: axis.size for axis in place}
    is_spread = sizes["ep"] > 1
    chunks = [
        chunk_parameters(hf, place, chunk, first=first and stage == 0, last=last and stage == vpp - 1, tied=tied)
        for stage, chunk in enumerate(layers)
    ]

    trained = chunks
    if adapters is not None:
        trained = [_adapter_parameters(hf, place, adapters) * len(chunk) for chunk in layers]

    def buffers(ranks: int, *, of_experts: bool) -> list[tuple[Bucket, ...]]:
        return [
            lay_out_buffer(
                [p for p in chunk if (p.is_expert and is_spread) == of_experts],
                ranks=ranks,
                bucket_size=bucket_size if stage == 0 else None,
            )
            for stage, chunk in enumerate(trained)
        ]

    dense, experts = buffers(ranks, of_experts=False), buffers(expert_ranks, of_experts=True)
    everything = [parameter for chunk in chunks for parameter in chunk]
    return RankParameters(
        elements=sum(p.elements for p in everything),
        stage_elements=sum(
            p.elements * (sizes["ep"] * sizes["etp"] if p.is_expert else sizes["tp"]) for p in everything
        ),
        linear_elements=sum(p.elements for p in everything if p.is_linear),
        buffer_elements=sum(b.elements for buckets in dense for b in buckets),
        shards=_shards(dense, ranks),
        expert_buffer_elements=sum(b.elements for buckets in experts for b in buckets),
        expert_shards=_shards(experts, expert_ranks),
        frozen_elements=0 if adapters is None else sum(p.elements for p in everything),
    )


def _adapter_parameters(hf: HFConfig, place: Place, adapters: Adapters) -> list[Parameter]:
    """Of one layer, in the order in which its modules are registered: A and B of each."""
    modules = [f"{LAYER}{module}" for module in ORDER]
    rules = sorted(adapter_table(hf, adapters), key=lambda rule: modules.index(rule.megatron.rpartition(".")[0]))
    return [_parameter(rule, place, is_tied=False) for rule in rules]


def _shards(buffers: Sequence[Sequence[Bucket]], ranks: int) -> tuple[int, ...]:
    return tuple(sum(shares) for shares in zip(*(shard_elements(buckets, ranks) for buckets in buffers), strict=True))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
