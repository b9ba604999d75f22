"""The carrier between processes that share GPUs (colocated placement): the engine reads the actor's memory.

Every rank holds two buffers on its GPU, made once; a bucket is brought to all GPUs of the actor (all-gather over the
ranks that hold it, broadcast over the pipeline group), and each engine worker opens the buffer that lies on its own
GPU. What crosses between processes is the CUDA IPC handle, as hex text in the manifest: no pickle. Those of all GPUs go
with the first two buckets of a sync, one for each buffer: they are as many as ranks, and every engine gets them.
Written for torch 2.11-2.13's storage sharing, which torch.multiprocessing uses; never run without a GPU.
"""

from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_nft.config.carriers import CARRIERS
from megatron_nft.weights.gather import gather_bucket
from megatron_nft.weights.plan import WeightPlan
from megatron_nft.weights.wire import BucketManifest, WireError, views

CARRIER = "cuda_ipc"


class CudaIpcSender:
    """See weights/wire.py, `Sender`. Bucket `index` is bucket index // stages of stage index % stages.

    Args:
        group: the ranks that hold this rank's stage in its replica.
        pp_group: the pipeline group of this rank.
        world: all ranks.
    """

    def __init__(
        self, plan: WeightPlan, *, group: dist.ProcessGroup, pp_group: dist.ProcessGroup, world: dist.ProcessGroup
    ) -> None:
        self._plan, self._group, self._pp_group = plan, group, pp_group
        self._stage, self._stages = dist.get_rank(pp_group), dist.get_world_size(pp_group)
        sizes: list[list[int]] = [[] for _ in range(self._stages)]
        dist.all_gather_object(sizes, [bucket.num_bytes for bucket in plan.buckets], group=pp_group)
        self._sizes = sizes
        largest = max(size for of_stage in sizes for size in of_stage)
        self._slots = [torch.empty(largest, dtype=torch.uint8, device="cuda") for _ in range(2)]
        mine = (uuid4().hex, _uuid(), [_handle(slot) for slot in self._slots])
        everyone = [mine] * dist.get_world_size(world)
        dist.all_gather_object(everyone, mine, group=world)
        self._name = everyone[0][0]  # of these ranks together: those that are started after them have another
        self._handles = {uuid: handles for _, uuid, handles in everyone}

    @property
    def num_rounds(self) -> int:
        return CARRIERS[CARRIER].num_rounds([len(of_stage) for of_stage in self._sizes])

    def send(self, index: int, link: int) -> BucketManifest | None:
        """Brings the bucket to every GPU; returns when it lies there."""
        number, stage = divmod(index, self._stages)
        if number >= len(self._sizes[stage]):
            return None
        buffer = self._slots[index % len(self._slots)][: self._sizes[stage][number]]
        if stage == self._stage:
            bucket = self._plan.buckets[number]
            tensors = views(buffer, bucket.tensors)
            places, dtype, group = self._plan.places, self._plan.dtype, self._group
            gather_bucket(bucket, places, tensors, dtype=dtype, group=group, everywhere=True)
        dist.broadcast(buffer, src=dist.get_global_rank(self._pp_group, stage), group=self._pp_group)
        torch.cuda.synchronize()
        if stage != self._stage or dist.get_rank(self._group) != 0:
            return None
        return BucketManifest(
            carrier=CARRIER,
            bucket=f"bucket {number} of stage {stage}",
            place={
                "sender": self._name,
                "slot": (slot := index % len(self._slots)),
                "handles": {uuid: handles[slot] for uuid, handles in self._handles.items()} if index == slot else {},
            },
            tensors=self._plan.buckets[number].tensors,
        )

    def close(self) -> None:
        """Gives the buffers back once no engine has them open."""
        self._slots = []


class CudaIpcReceiver:
    """See weights/wire.py, `Receiver`."""

    def __init__(self) -> None:
        self._sender = ""
        self._opened: dict[str, Tensor] = {}  # by handle: two buffers can lie in one block of memory
        self._slots: dict[int, Tensor] = {}

    def receive(self, manifest: BucketManifest) -> dict[str, Tensor]:
        """Opens the buffer on this worker's own GPU. Those of earlier ranks are closed: they hold the GPU's memory as
        long as anybody has them open."""
        sender, slot, handles = (manifest.place[name] for name in ("sender", "slot", "handles"))
        if handles and _uuid() not in handles:
            raise WireError(
                f"{manifest.bucket}: no actor rank is on this engine's GPU {_uuid()}, only on {sorted(handles)}; "
                'cluster.placement = "split" needs weights.carrier = "collective"'
            )
        if sender != self._sender:
            self._sender, self._opened, self._slots = sender, {}, {}
        if handles:
            handle = handles[_uuid()]
            key = str(handle)
            if key not in self._opened:
                self._opened[key] = _open(handle)
            self._slots[slot] = self._opened[key]
        if slot not in self._slots:
            raise WireError(f"{manifest.bucket}: the handle of buffer {slot} has not come; begin the sync again")
        return views(self._slots[slot], manifest.tensors)

    def close(self) -> None:
        """Closes the buffers."""
        self._opened, self._slots = {}, {}


def _uuid() -> str:
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def _handle(buffer: Tensor) -> list[Any]:
    """The buffer's handle as plain JSON: torch's, less the device number, which is the reader's own."""
    _, *rest = buffer.untyped_storage()._share_cuda_()
    return [part.hex() if isinstance(part, bytes) else part for part in rest] + [len(buffer)]


def _open(handle: list[Any]) -> Tensor:
    memory, size, offset, counter, counter_offset, event, event_sync, length = handle
    storage = torch.UntypedStorage._new_shared_cuda(
        torch.cuda.current_device(), bytes.fromhex(memory), size, offset, bytes.fromhex(counter), counter_offset,
        bytes.fromhex(event), event_sync,
    )  # fmt: skip
    return torch.tensor([], dtype=torch.uint8, device="cuda").set_(storage)[:length]
