"""Tensor-parallel shards -> HF tensors, bucket by bucket.

A rank's parameters come in; whole HF tensors in the engine's number format go out on the stage's leader (tensor- and
data-parallel rank 0), a bucket at a time. Each pipeline stage gathers and sends its own parameters, so none crosses
stages. A bucket costs one collective: the shards of all its parameters travel as one flat buffer. Called by
actor/worker.py for weight sync and for export.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_nft.hf_config import HFConfig
from megatron_nft.weights.mapping import Rule, find_rule


@dataclass(frozen=True)
class Shard:
    """One parameter of this rank, its rule, and the layer's number in the whole model."""

    name: str
    tensor: Tensor
    rule: Rule
    layer: str

    @property
    def hf_names(self) -> list[str]:
        return self.rule.hf_names(self.layer)


@dataclass(frozen=True)
class WeightPlan:
    """What this rank's stage sends: made once, the same on all ranks of the stage, reused each sync."""

    buckets: tuple[tuple[Shard, ...], ...]

    @property
    def hf_names(self) -> list[str]:
        """Names of all tensors that this stage sends, in order."""
        return [name for bucket in self.buckets for shard in bucket for name in shard.hf_names]


def plan_weights(
    parameters: Sequence[tuple[str, Tensor]], hf: HFConfig, *, tp_size: int, dtype: torch.dtype, bucket_bytes: int
) -> WeightPlan:
    """Cuts a stage's parameters into buckets of at most `bucket_bytes` of HF tensors (one larger tensor stands alone).

    Args:
        parameters: (Megatron name with the global layer number, this rank's shard), in an order equal on all ranks.
        dtype: number format in which they are sent.
    """
    buckets: list[list[Shard]] = [[]]
    filled = 0
    for name, tensor in parameters:
        rule, layer = find_rule(name, hf)
        size = tensor.numel() * dtype.itemsize * (tp_size if rule.layout.is_sharded else 1)
        if buckets[-1] and filled + size > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(Shard(name, tensor, rule, layer))
        filled += size
    return WeightPlan(tuple(tuple(bucket) for bucket in buckets))


def gather_bucket(
    bucket: Sequence[Shard], hf: HFConfig, *, dtype: torch.dtype, tp_group: dist.ProcessGroup, sends: bool
) -> dict[str, Tensor]:
    """HF tensors of one bucket on the leader, an empty dict elsewhere. A collective of the tensor-parallel group.

    The cast to `dtype` comes before the wire: an engine given another format than its own would keep that format.
    """
    sharded = [shard for shard in bucket if shard.rule.layout.is_sharded]
    whole = [shard for shard in bucket if not shard.rule.layout.is_sharded]
    pieces: dict[str, list[Tensor]] = {shard.name: [shard.tensor.detach().to(dtype)] for shard in whole}
    if sharded:
        flat = torch.cat([shard.tensor.detach().to(dtype).flatten() for shard in sharded])
        for rank_flat in _gather_to_first(flat, tp_group):
            parts = rank_flat.split([shard.tensor.numel() for shard in sharded])
            for shard, part in zip(sharded, parts, strict=True):
                pieces.setdefault(shard.name, []).append(part.view(shard.tensor.shape))
    if not sends:
        return {}
    return {
        name: tensor.contiguous()
        for shard in bucket
        for name, tensor in zip(shard.hf_names, shard.rule.layout.to_hf(pieces[shard.name], hf), strict=True)
    }


def _gather_to_first(flat: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    size = dist.get_world_size(group)
    if size == 1:
        return [flat]
    is_first = dist.get_rank(group) == 0
    received = [torch.empty_like(flat) for _ in range(size)] if is_first else None
    dist.gather(flat, received, dst=dist.get_global_rank(group, 0), group=group)
    return received or []
