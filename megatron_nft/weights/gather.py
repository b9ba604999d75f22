"""Tensor-parallel shards -> whole HF tensors, a bucket at a time.

`place_shards` writes one rank's own parts into memory that all ranks of the stage can reach. `gather_bucket` brings the
shards together: those of a rank and bucket travel as one flat message. Each pipeline stage has its own buckets, so no
parameter crosses stages. Called by the carriers (weights/wire.py) and, for export, by actor/worker.py.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_nft.families.hf_config import HFConfig
from megatron_nft.weights.plan import Bucket, Shard


def place_shards(bucket: Bucket, hf: HFConfig, tensors: dict[str, Tensor], *, tp_rank: int, tp_size: int) -> None:
    """Writes this rank's parts of the bucket's HF tensors, cast to their dtype. No collective.

    What all ranks have whole (norms) comes from rank 0.
    """
    mine = [(shard, shard.tensor) for shard in bucket.shards if shard.rule.layout.is_sharded or tp_rank == 0]
    _place(mine, hf, tensors, tp_rank, tp_size)


def gather_bucket(
    bucket: Bucket,
    hf: HFConfig,
    tensors: dict[str, Tensor] | None,
    *,
    dtype: torch.dtype,
    group: dist.ProcessGroup,
    everywhere: bool = False,
) -> None:
    """Fills `tensors` with the bucket's HF tensors. A collective of the tensor-parallel group.

    The cast to `dtype` comes before the wire: an engine given another format than its own would keep that format.

    Args:
        tensors: HF name -> tensor to fill, on the group's first rank, or on every one; None where none are.
        dtype: that of `tensors`, on every rank.
        everywhere: every rank fills them.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if size == 1:
        assert tensors is not None
        place_shards(bucket, hf, tensors, tp_rank=0, tp_size=1)
        return
    sharded = [shard for shard in bucket.shards if shard.rule.layout.is_sharded]
    whole = [shard for shard in bucket.shards if not shard.rule.layout.is_sharded]
    received: list[Tensor] = []
    if sharded:
        flat = torch.cat([shard.tensor.detach().to(dtype).flatten() for shard in sharded])
        if everywhere:
            received = [torch.empty_like(flat) for _ in range(size)]
            dist.all_gather(received, flat, group=group)
        elif rank == 0:
            received = [flat, *(torch.empty_like(flat) for _ in range(size - 1))]
            # Not dist.gather: over gloo it was 6 times slower (benchmarks/weight_sync).
            arriving = [
                dist.irecv(buffer, src=dist.get_global_rank(group, of_rank), group=group)
                for of_rank, buffer in enumerate(received)
                if of_rank > 0
            ]
            for work in arriving:
                work.wait()
        else:
            dist.send(flat, dst=dist.get_global_rank(group, 0), group=group)
    if tensors is None:
        return
    _place([(shard, shard.tensor) for shard in whole], hf, tensors, 0, size)
    for of_rank, flat in enumerate(received):
        pieces = flat.split([shard.tensor.numel() for shard in sharded])
        theirs = [(shard, piece.view(shard.tensor.shape)) for shard, piece in zip(sharded, pieces, strict=True)]
        _place(theirs, hf, tensors, of_rank, size)


def _place(
    shards: Iterable[tuple[Shard, Tensor]], hf: HFConfig, tensors: dict[str, Tensor], tp_rank: int, tp_size: int
) -> None:
    """Writes the parts of parameters, given with what tensor-parallel rank `tp_rank` has of them."""
    for shard, tensor in shards:
        for name, part in shard.parts(tensor.detach(), tp_rank, tp_size, hf).items():
            part.copy_to(tensors[name])
