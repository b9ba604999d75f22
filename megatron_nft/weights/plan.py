"""A stage's parameters, cut into buckets: what goes on the wire, in which order, and where it lies.

A rank's parameters come in under names with global layer numbers; buckets of HF tensors go out, the same on all ranks
of the stage. Made once by actor/worker.py and reused in each sync.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_nft.families.hf_config import HFConfig
from megatron_nft.weights.mapping import Part, Rule, find_rule
from megatron_nft.weights.wire import TensorSpec, lay_out

AUTOMATIC_BUCKETS = 16
"""Of a stage: enough that gathering the first and loading the last, with nothing beside them, cost little."""
SMALLEST_BUCKET_BYTES, LARGEST_BUCKET_BYTES = 16 << 20, 512 << 20
"""Each bucket costs the driver two calls, some milliseconds; above this size there is nothing left to gain.
benchmarks/weight_sync: from 16 to 256 MiB the size made no difference."""


@dataclass(frozen=True)
class Shard:
    """One parameter of this rank, its rule, and the layer's number in the whole model."""

    name: str
    tensor: Tensor
    rule: Rule
    layer: str

    def parts(self, tensor: Tensor, rank: int, size: int, hf: HFConfig) -> dict[str, Part]:
        """HF name -> the part of it in `tensor`, this parameter's shard on tensor-parallel rank `rank`."""
        parts = self.rule.layout.parts(tensor, rank, size, hf)
        return dict(zip(self.rule.hf_names(self.layer), parts, strict=True))


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
    """What a stage sends."""

    hf: HFConfig
    dtype: torch.dtype
    tp_size: int
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
    hf: HFConfig,
    *,
    tp_size: int,
    dtype: torch.dtype,
    bucket_bytes: int | None,
) -> WeightPlan:
    """Cuts a stage's parameters into buckets of at most `bucket_bytes` of HF tensors (a larger one stands alone).

    Args:
        parameters: (Megatron name with the global layer number, this rank's shard), in an order equal on all ranks.
        dtype: number format in which they are sent.
        bucket_bytes: None for a sensible size.
    """
    shards = [Shard(name, tensor, *find_rule(name, hf)) for name, tensor in parameters]
    sizes = [max(spec.end for spec in _table([shard], hf, tp_size, dtype).values()) for shard in shards]
    if bucket_bytes is None:
        bucket_bytes = min(max(sum(sizes) // AUTOMATIC_BUCKETS, SMALLEST_BUCKET_BYTES), LARGEST_BUCKET_BYTES)
    buckets: list[list[Shard]] = [[]]
    filled = 0
    for shard, size in zip(shards, sizes, strict=True):
        if buckets[-1] and filled + size > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(shard)
        filled += size
    return WeightPlan(
        hf, dtype, tp_size, tuple(Bucket(tuple(shards), _table(shards, hf, tp_size, dtype)) for shards in buckets)
    )


def _table(shards: Sequence[Shard], hf: HFConfig, tp_size: int, dtype: torch.dtype) -> dict[str, TensorSpec]:
    tensors = {}
    for shard in shards:
        for name, part in shard.parts(shard.tensor.detach(), 0, tp_size, hf).items():
            tensors[name] = (dtype, part.shape)
    return lay_out(tensors)
