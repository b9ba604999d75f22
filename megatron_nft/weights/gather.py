"""Shards -> whole HF tensors, a bucket at a time.

`place_shards` writes one rank's own parts into memory that all ranks of the stage can reach. `gather_bucket` brings the
shards together: those of a rank and bucket travel as one flat message. Each pipeline stage has its own buckets, so no
parameter crosses stages. Called by the carriers (weights/wire.py) and, for export, by actor/worker.py.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_nft.families.rules import Place
from megatron_nft.weights.plan import Bucket, Shard


def place_shards(bucket: Bucket, tensors: dict[str, Tensor], place: Place) -> None:
    """Writes the parts of the bucket's HF tensors that the rank at `place`, this one, owns, cast to their dtype.

    No collective.
    """
    _write([(shard, shard.values) for shard in bucket.shards if shard.rule.is_owned_at(place)], tensors, place)


def gather_bucket(
    bucket: Bucket,
    places: Sequence[Place],
    tensors: dict[str, Tensor] | None,
    *,
    dtype: torch.dtype,
    group: dist.ProcessGroup,
    everywhere: bool = False,
) -> None:
    """Fills `tensors` with the bucket's HF tensors. A collective of the ranks that hold the stage.

    The cast to `dtype` comes before the wire: an engine given another format than its own would keep that format.

    Args:
        places: of the group's ranks.
        tensors: HF name -> tensor to fill, on the group's first rank, or on every one; None where none are.
        dtype: that of `tensors`, on every rank.
        everywhere: every rank fills them.
    """
    rank = dist.get_rank(group)
    if len(places) == 1:
        assert tensors is not None
        place_shards(bucket, tensors, places[0])
        return
    theirs = [[s for s in bucket.shards if s.rule.axes and s.rule.is_owned_at(place)] for place in places]
    lengths = [sum(shard.tensor.numel() for shard in shards) for shards in theirs]
    flat = _flat(theirs[rank], bucket.shards[0].tensor.device, dtype)
    received: list[Tensor] = []
    if everywhere:
        received = [flat.new_empty(length) for length in lengths]
        if any(lengths):
            dist.all_gather(received, flat, group=group)
    elif rank == 0:
        received = [flat, *(flat.new_empty(length) for length in lengths[1:])]
        # Not dist.gather: over gloo it was 6 times slower (benchmarks/weight_sync).
        arriving = [
            dist.irecv(buffer, src=dist.get_global_rank(group, number), group=group)
            for number, buffer in enumerate(received)
            if number > 0 and len(buffer)
        ]
        for work in arriving:
            work.wait()
    elif len(flat):
        dist.send(flat, dst=dist.get_global_rank(group, 0), group=group)
    if tensors is None:
        return
    _write([(shard, shard.values) for shard in bucket.shards if not shard.rule.axes], tensors, places[rank])
    for shards, message, place in zip(theirs, received, places, strict=True):
        pieces = message.split([shard.tensor.numel() for shard in shards])
        _write([(s, piece.view(s.tensor.shape)) for s, piece in zip(shards, pieces, strict=True)], tensors, place)


def _flat(shards: Sequence[Shard], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Shards, cast, one after the other."""
    nothing = torch.empty(0, dtype=dtype, device=device)
    return torch.cat([nothing, *(shard.values.to(dtype).flatten() for shard in shards)])


def _write(shards: Iterable[tuple[Shard, Tensor]], tensors: dict[str, Tensor], place: Place) -> None:
    """The parts of parameters, given with what the rank at `place` has of them."""
    for shard, tensor in shards:
        for part in shard.parts(tensor, place):
            part.copy_to(tensors[part.name])
