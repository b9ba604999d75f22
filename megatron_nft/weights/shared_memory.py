"""The carrier between processes of one machine: every rank writes its own parts, every engine maps the whole.

Two buffers a stage, made once. They are anonymous (memfd): they need no room in /dev/shm, which containers keep small,
and vanish with the processes that use them, however those end. There is no gather: the ranks write side by side
what each owns, cast on the way, and of an engine's tensor-parallel workers each reads only its own slices.
So every byte of the model is written once and read once, which is the least possible.
"""

import os
import zlib

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_nft.config.carriers import CARRIERS
from megatron_nft.weights.gather import place_shards
from megatron_nft.weights.plan import WeightPlan
from megatron_nft.weights.wire import BucketManifest, WireError, views

CARRIER = "shared_memory"


class SharedMemorySender:
    """See weights/wire.py, `Sender`.

    Args:
        stage: pipeline rank, for messages.
        group: the ranks that hold the stage, all on this machine.
        device: of the group's collectives.
    """

    def __init__(
        self, plan: WeightPlan, *, stage: int, group: dist.ProcessGroup, device: torch.device, checksums: bool
    ) -> None:
        self._plan, self._stage, self._group, self._checksums = plan, stage, group, checksums
        self._rank = dist.get_rank(group)
        self._files: list[int] = []
        size = max(plan.largest_bucket_bytes, 1)
        if self._rank == 0:
            self._files = [os.memfd_create(f"megatron_nft-bucket-{slot}") for slot in range(2)]
            for file in self._files:
                os.truncate(file, size)
        paths = torch.tensor([os.getpid(), *(self._files or (0, 0))], device=device)
        dist.broadcast(paths, src=dist.get_global_rank(group, 0), group=group)
        pid, *files = paths.tolist()
        self._paths = [f"/proc/{pid}/fd/{file}" for file in files]
        self._slots = [_map(path, size, writable=True) for path in self._paths]

    @property
    def num_rounds(self) -> int:
        return CARRIERS[CARRIER].num_rounds([len(self._plan.buckets)])

    def send(self, index: int, link: int) -> BucketManifest | None:
        """Writes this rank's parts. The bucket is whole when all ranks of the group have returned."""
        if index >= len(self._plan.buckets):
            return None
        bucket, slot = self._plan.buckets[index], index % 2
        tensors = views(self._slots[slot], bucket.tensors)
        place_shards(bucket, tensors, self._plan.places[self._rank])
        checksum = None
        if self._checksums:
            dist.barrier(group=self._group)
            checksum = _checksum(self._slots[slot][: bucket.num_bytes])
        if self._rank != 0:
            return None
        return BucketManifest(
            carrier=CARRIER,
            bucket=f"bucket {index} of stage {self._stage}",
            place={"path": self._paths[slot]},
            tensors=bucket.tensors,
            checksum=checksum,
        )

    def close(self) -> None:
        """Gives the memory back once no receiver maps it."""
        self._slots = []
        for file in self._files:
            os.close(file)
        self._files = []


class SharedMemoryReceiver:
    """See weights/wire.py, `Receiver`."""

    def __init__(self) -> None:
        self._mapped: dict[tuple[str, int], Tensor] = {}  # by path and inode: a later sender's may have the same path

    def receive(self, manifest: BucketManifest) -> dict[str, Tensor]:
        """Maps the bucket, and compares its checksum if it has one. A new mapping is of new ranks, or of the first
        ones: those of ranks that have ended go, with the memory that only they still hold."""
        path = manifest.place["path"]
        try:
            status = os.stat(path)
            key = (path, status.st_ino)
            if key not in self._mapped:
                self._mapped = {old: buffer for old, buffer in self._mapped.items() if _inode(old[0]) == old[1]}
                self._mapped[key] = _map(path, status.st_size, writable=False)
        except (OSError, RuntimeError) as error:
            raise WireError(
                f"cannot map {manifest.bucket} at {path}: {error}; its sender has ended, or runs on another machine, "
                'which needs weights.carrier = "collective"'
            ) from error
        buffer = self._mapped[key]
        tensors = views(buffer, manifest.tensors)
        if manifest.checksum is not None:
            found = _checksum(buffer[: manifest.buffer_bytes])
            if found != manifest.checksum:
                raise WireError(
                    f"{manifest.bucket} has checksum {found:08x}, its manifest says {manifest.checksum:08x}: its bytes "
                    "changed on the way; look at this machine's memory"
                )
        return tensors

    def close(self) -> None:
        """Unmaps the buffers."""
        self._mapped = {}


def _map(path: str, num_bytes: int, *, writable: bool) -> Tensor:
    storage = torch.UntypedStorage.from_file(path, writable, num_bytes)
    return torch.tensor([], dtype=torch.uint8).set_(storage)


def _inode(path: str) -> int | None:
    """None: the file's process has closed it, or has ended."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _checksum(buffer: Tensor) -> int:
    return zlib.crc32(buffer.numpy())
