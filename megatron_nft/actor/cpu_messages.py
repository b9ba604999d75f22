"""Sums over the two tensor-parallel ranks of one machine, through memory that both see: gloo's go through a socket.

On a CPU the layers of a small model spend as long on gloo's all-reduces as on their products (0.35 GB/s between two
ranks of one machine; copies in memory are 10 times faster). `share_memory` has torch's `all_reduce` take this way for
one group, where it can: two ranks, one machine, a sum. The numbers are gloo's bit by bit, since a + b is b + a. Called
by actor/topology.py.
"""

import mmap
import os
import socket
import tempfile
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

SLOT_BYTES = 4 << 20
"""Of a message's part. Each rank has two: while the other reads one, the next is written."""
LEAST_BYTES = 16 << 10
"""Smaller ones wait for each other more than they are copied: gloo's."""
FLAG_BYTES = 128
"""Apart, so that neither rank's count lies in a cache line that the other one writes."""
SIZE = 2 * FLAG_BYTES + 4 * SLOT_BYTES
PATIENT_LOOKS, PAUSE_S = 200, 1e-4
"""Looks at the other's count before the core is left to others, who may be what it waits for."""

_gloo_all_reduce = dist.all_reduce
_shared: dict[Any, "_Shared"] = {}


class _Done:
    """Of a message that was not waited for elsewhere."""

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class _Shared:
    """Two ranks' memory."""

    def __init__(self, memory: mmap.mmap, rank: int, timeout_s: float) -> None:
        self._me, self._timeout_s = rank, timeout_s
        self._counts = [np.ndarray((1,), np.int64, memory, r * FLAG_BYTES) for r in range(2)]
        self._slots = [
            [
                torch.frombuffer(memory, dtype=torch.uint8, count=SLOT_BYTES, offset=offset)
                for offset in (2 * FLAG_BYTES + (2 * r + i) * SLOT_BYTES for i in range(2))
            ]
            for r in range(2)
        ]
        self._count = 0

    def add(self, tensor: Tensor) -> None:
        """Sums a contiguous tensor of both, in place."""
        flat = tensor.view(-1)
        for part in flat.split(SLOT_BYTES // tensor.element_size()):
            self._count += 1
            mine, its = (self._slots[rank][self._count % 2] for rank in (self._me, 1 - self._me))
            size = part.numel() * part.element_size()
            mine[:size].view(part.dtype).copy_(part)
            self._counts[self._me][0] = self._count  # after the copy: x86 keeps the order of writes
            self._wait()
            part.add_(its[:size].view(part.dtype))

    def _wait(self) -> None:
        other, looks, deadline = self._counts[1 - self._me], 0, 0.0
        while other[0] < self._count:
            looks += 1
            if looks < PATIENT_LOOKS:
                os.sched_yield()
                continue
            time.sleep(PAUSE_S)
            deadline = deadline or time.monotonic() + self._timeout_s
            if time.monotonic() > deadline:
                raise RuntimeError(f"the other tensor-parallel rank sent nothing for {self._timeout_s:g} s")


def share_memory(group: dist.ProcessGroup, timeout_s: float) -> None:
    """Sums of this group go through memory from here on, if its ranks are two of one machine. A collective of it."""
    rank = dist.get_rank(group)
    machines: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(machines, (socket.gethostname(), _boot()), group=group)
    if len(machines) != 2 or machines[0] != machines[1]:
        return
    path = [_make() if rank == 0 else None]
    dist.broadcast_object_list(path, group=group, group_src=0)
    memory = _map(path[0])
    dist.all_gather_object(both := [None, None], memory is not None, group=group)
    if rank == 0 and path[0] is not None:
        os.unlink(path[0])  # the memory lives as long as the two have it
    if memory is None or not all(both):
        return
    _shared[group] = _Shared(memory, rank, timeout_s)
    dist.all_reduce = _all_reduce


def forget_shared_memory() -> None:
    """All groups are gone."""
    _shared.clear()
    dist.all_reduce = _gloo_all_reduce


def _all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
    shared = _shared.get(group)
    size = tensor.numel() * tensor.element_size()
    if shared is None or op != dist.ReduceOp.SUM or size < LEAST_BYTES or not tensor.is_contiguous():
        return _gloo_all_reduce(tensor, op=op, group=group, async_op=async_op)
    with torch.no_grad():
        shared.add(tensor)
    return _Done() if async_op else None


def _make() -> str | None:
    """A file of memory; None: there is no room for it."""
    path = None
    try:
        handle, path = tempfile.mkstemp(prefix="nft_sums_", dir="/dev/shm")
        with os.fdopen(handle, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE)
    except OSError:
        if path is not None:
            os.unlink(path)
        return None
    return path


def _map(path: str | None) -> mmap.mmap | None:
    """None: this rank doesn't see the file, as in a container of its own."""
    try:
        with open(path or "", "r+b") as file:
            return mmap.mmap(file.fileno(), SIZE)
    except OSError:
        return None


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read()
