"""A stage's parameters, cut into buckets: what goes on the wire, in which order, and where it lies.

A rank's parameters come in under names with global layer numbers; buckets of HF tensors go out, the same on all ranks
of the stage. Which ranks' shards are sent is asked of each tensor's rule. Made once by actor/worker.py and reused in
each sync.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType

import torch
from torch import Tensor

from megatron_nft.families.rules import ExpertRule, Numbers, Place, Rule, Table
from megatron_nft.weights.layouts import Part, parts
from megatron_nft.weights.wire import TensorSpec, lay_out

AUTOMATIC_BUCKETS = 16
"""Of a stage: enough that gathering the first and loading the last, with nothing beside them, cost little."""
SMALLEST_BUCKET_BYTES, LARGEST_BUCKET_BYTES = 16 << 20, 512 << 20
"""Each bucket costs the driver a call of every rank and engine; above this size there is little left to gain. A larger
tensor, such as a vocabulary's, stands alone, and its buffers may as well be filled by the others: they lie there."""


@dataclass(frozen=True)
class Shard:
    """One parameter of this rank, its rule, and the numbers in its name, counted over the whole model.

    delta: what an adapter adds to it, in fp32.
    """

    name: str
    tensor: Tensor
    rule: Rule
    numbers: Numbers
    delta: Callable[[], Tensor] | None = None

    @property
    def values(self) -> Tensor:
        """The parameter, without gradient. Of one that is held in FP8 a copy in bf16: FP8 tensors with a scale a block
        can't be viewed in other shapes."""
        tensor = self.tensor.detach()
        if type(tensor) is not Tensor:
            tensor = tensor.dequantize()
        return tensor if self.delta is None else (tensor.float() + self.delta()).to(tensor.dtype)

    def hf_shapes(self, place: Place) -> dict[str, tuple[int, ...]]:
        """HF name -> shape of the tensors that a rank at `place` has a part of, by this parameter."""
        return self.rule.hf_shapes(self.numbers, place)

    def parts(self, tensor: Tensor, place: Place) -> list[Part]:
        """Those of `tensor`, this parameter's shard on the rank at `place`."""
        return parts(self.rule, self.numbers, tensor, place)


@dataclass(frozen=True)
class Bucket:
    """Parameters that travel together, and the HF tensors that they make."""

    shards: tuple[Shard, ...]
    tensors: dict[str, TensorSpec]

    @property
    def num_bytes(self) -> int:
        """Of the buffer that holds its HF tensors."""
        return max(spec.end for spec in self.tensors.values())

    def empty_tensors(self, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
        """New HF tensors, to be filled."""
        return {name: torch.empty(spec.shape, dtype=dtype, device=device) for name, spec in self.tensors.items()}


@dataclass(frozen=True)
class WeightPlan:
    """What a stage sends.

    Attributes:
        places: of the ranks that together hold each tensor of the stage, by their number in the group in which they
            send it.
    """

    dtype: torch.dtype
    places: tuple[Place, ...]
    buckets: tuple[Bucket, ...]

    @property
    def hf_names(self) -> list[str]:
        """Names of all tensors that this stage sends, in order."""
        return [name for bucket in self.buckets for name in bucket.tensors]

    @property
    def largest_bucket_bytes(self) -> int:
        """Of the buffer that can hold any bucket."""
        return max((bucket.num_bytes for bucket in self.buckets), default=0)


def plan_weights(
    parameters: Sequence[tuple[str, Tensor]],
    table: Table,
    *,
    places: Sequence[Place],
    dtype: torch.dtype,
    bucket_bytes: int | None,
    deltas: Mapping[str, Callable[[], Tensor]] = MappingProxyType({}),
) -> WeightPlan:
    """Cuts a stage's parameters into buckets of at most `bucket_bytes` of HF tensors (a larger one stands alone).

    The experts of a layer lie in one bucket if they fit into one.

    Args:
        parameters: (Megatron name with the global layer number, this rank's shard), in an order equal on all ranks.
        table: the model's.
        places: see WeightPlan.
        dtype: number format in which they are sent.
        bucket_bytes: None for a sensible size, in which a layer's experts fit.
        deltas: Megatron name -> what is added to the parameter whenever it is sent.
    """
    shards = [Shard(name, tensor, *table.find(name), deltas.get(name)) for name, tensor in parameters]
    units = [list(unit) for _, unit in groupby(shards, _unit)]
    sizes = [[max(spec.end for spec in _lay_out([shard], places, dtype).values()) for shard in unit] for unit in units]
    if bucket_bytes is None:
        whole = [sum(unit) for unit in sizes]
        bucket_bytes = min(max(sum(whole) // AUTOMATIC_BUCKETS, SMALLEST_BUCKET_BYTES), LARGEST_BUCKET_BYTES)
        bucket_bytes = max([bucket_bytes, *whole])
    buckets: list[list[Shard]] = [[]]
    filled = 0
    for unit, of_shards in zip(units, sizes, strict=True):
        whole_unit = sum(of_shards)
        for shard, size in zip(unit, of_shards, strict=True):
            if buckets[-1] and filled + (whole_unit if shard is unit[0] else size) > bucket_bytes:
                buckets.append([])
                filled = 0
            buckets[-1].append(shard)
            filled += size
    return WeightPlan(
        dtype, tuple(places), tuple(Bucket(tuple(shards), _lay_out(shards, places, dtype)) for shards in buckets)
    )


def _unit(shard: Shard) -> tuple[object, ...]:
    """What an engine makes one tensor of: all experts of a layer. Those that wait for another bucket are held twice."""
    if isinstance(shard.rule, ExpertRule):
        return (ExpertRule, shard.numbers["layer"])
    return (shard.name,)


def _lay_out(shards: Sequence[Shard], places: Sequence[Place], dtype: torch.dtype) -> dict[str, TensorSpec]:
    tensors = {}
    for shard in shards:
        for place in places:
            tensors |= {name: (dtype, shape) for name, shape in shard.hf_shapes(place).items()}
    return lay_out(tensors)
