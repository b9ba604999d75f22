"""The carrier between machines, and between GPUs that actors and engines don't share: one broadcast a bucket.

The leader of each pipeline stage and all engine workers form a process group of their own (NCCL on GPUs, gloo on CPUs),
beside whatever groups Megatron and vLLM have. The stage's shards are gathered on the leader, then broadcast from a
thread: so the actor gathers the next bucket while the last is on its way, and control calls are never held up. On a GPU
nobody waits for the whole device: a broadcast that a dead receiver never takes lies there until its group is aborted.
The leader's main thread does so as soon as the next link is asked for, and tells the receivers that live, by the store.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_nft.config.carriers import CARRIERS
from megatron_nft.weights.gather import gather_bucket
from megatron_nft.weights.plan import WeightPlan
from megatron_nft.weights.wire import BucketManifest, WireError, views

CARRIER = "collective"
GROUP_PATIENCE = 2
"""Time that the group gives its members, in deadlines of the driver, whose message names the one that is late."""
OVER = "over"
"""Key of the store: the leader has left the group, and no broadcast will be whole."""
LOOK_EVERY_S, ASK_EVERY_S = 0.001, 0.5
"""A receiver that waits: at its device, and for OVER."""


class CollectiveSender:
    """See weights/wire.py, `Sender`.

    Args:
        stage: pipeline rank.
        group: the ranks that hold the stage.
        host: this machine's address, as engines reach it.
        num_receivers: workers of all engines.
        timeout_s: longest wait for the receivers to join, and for a broadcast.
    """

    def __init__(
        self,
        plan: WeightPlan,
        *,
        stage: int,
        group: dist.ProcessGroup,
        device: torch.device,
        host: str,
        num_receivers: int,
        timeout_s: float,
    ) -> None:
        self._plan, self._stage, self._group, self._device = plan, stage, group, device
        self._host, self._num_receivers, self._timeout_s = host, num_receivers, timeout_s
        self._group_timeout_s = GROUP_PATIENCE * timeout_s
        self._is_leader = dist.get_rank(group) == 0
        self._slots = [torch.empty(plan.largest_bucket_bytes if self._is_leader else 0, dtype=torch.uint8,
                                   device=device) for _ in range(2)]  # fmt: skip
        self._sent: list[Future | None] = [None, None]
        self._link: int | None = None
        self._connection: _Connection | None = None

    @property
    def num_rounds(self) -> int:
        return CARRIERS[CARRIER].num_rounds([len(self._plan.buckets)])

    def send(self, index: int, link: int) -> BucketManifest | None:
        """Gathers the bucket and begins its broadcast. A new `link` makes a new group, which the receivers join."""
        if index >= len(self._plan.buckets):
            return None
        bucket, slot = self._plan.buckets[index], index % 2
        if not self._is_leader:
            gather_bucket(bucket, self._plan.places, None, dtype=self._plan.dtype, group=self._group)
            return None
        if link != self._link:
            self.close()
            self._link = link
            self._connection = _Connection(self._host, self._num_receivers, self._device, self._group_timeout_s)
        self._wait_for(slot)
        buffer = self._slots[slot][: bucket.num_bytes]
        tensors = views(buffer, bucket.tensors)
        gather_bucket(bucket, self._plan.places, tensors, dtype=self._plan.dtype, group=self._group)
        assert self._connection is not None
        self._sent[slot] = self._connection.broadcast(buffer)
        return BucketManifest(
            carrier=CARRIER,
            bucket=f"bucket {index} of stage {self._stage}",
            place={
                "stage": self._stage,
                "store": self._connection.address,
                "world_size": 1 + self._num_receivers,
                "timeout_s": self._group_timeout_s,
            },
            tensors=bucket.tensors,
        )

    def close(self) -> None:
        """Leaves the group, whatever is on its way."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._link, self._sent = None, None, [None, None]

    def _wait_for(self, slot: int) -> None:
        sent, self._sent[slot] = self._sent[slot], None
        if sent is None:
            return
        try:
            sent.result(self._timeout_s)
        except FutureTimeout:
            raise WireError(f"stage {self._stage}: a broadcast was not taken within {self._timeout_s:g} s") from None
        except Exception as error:
            raise WireError(f"stage {self._stage}: a broadcast to the engines failed: {error}") from error


class CollectiveReceiver:
    """See weights/wire.py, `Receiver`.

    Args:
        place: of this worker among the workers of all engines, from 0.
    """

    def __init__(self, place: int, device: torch.device) -> None:
        self._place, self._device = place, device
        self._groups: dict[int, tuple[str, Any, Any]] = {}  # stage -> (its store's address, the store, the group)
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)

    def receive(self, manifest: BucketManifest) -> dict[str, Tensor]:
        """Takes part in the bucket's broadcast; joins the stage's group if it is a new one."""
        place = manifest.place
        try:
            stage, address = place["stage"], place["store"]
            if self._groups.get(stage, ("", None, None))[0] != address:
                _abort(self._groups.pop(stage, ("", None, None))[2])
                host, _, port = address.rpartition(":")
                timeout = timedelta(seconds=place["timeout_s"])
                store = dist.TCPStore(host, int(port), is_master=False, timeout=timeout)
                group = _join(store, 1 + self._place, place["world_size"], self._device, timeout)
                self._groups[stage] = (address, store, group)
            if len(self._buffer) < manifest.buffer_bytes:
                self._buffer = torch.empty(manifest.buffer_bytes, dtype=torch.uint8, device=self._device)
            buffer = self._buffer[: manifest.buffer_bytes]
            _, store, group = self._groups[stage]
            _broadcast(group, buffer, self._device, lambda: _is_over(store))
        except (RuntimeError, KeyError) as error:
            self._groups.pop(place.get("stage"), None)  # of no more use
            raise WireError(f"{manifest.bucket} did not come from {place}: {error}") from error
        return views(buffer, manifest.tensors)

    def close(self) -> None:
        """Leaves all groups."""
        for _, _, group in self._groups.values():
            _abort(group)
        self._groups = {}


class _Connection:
    """The leader's side of one group: joins it and broadcasts, in a thread, one thing after the other.

    On a GPU the thread works on a stream of its own. `close` may come while it waits there.
    """

    def __init__(self, host: str, num_receivers: int, device: torch.device, timeout_s: float) -> None:
        timeout = timedelta(seconds=timeout_s)
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        # A line of its own: one that waits for a receiver to join answers nobody else until then.
        self._to_receivers = dist.TCPStore(host, store.port, is_master=False, timeout=timeout)
        self.address = f"{host}:{store.port}"
        self._device = device
        self._group: Any = None
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weight-broadcast")

        def join() -> None:
            if device.type == "cuda":
                torch.cuda.set_device(device)
                torch.cuda.set_stream(torch.cuda.Stream(device))  # of this thread, for good
            self._group = _join(store, 0, 1 + num_receivers, device, timeout)
            if self._is_closed:
                _abort(self._group)

        self._joined = self._thread.submit(join)

    def broadcast(self, buffer: Tensor) -> Future:
        """Once what the caller's stream has been given is done; the caller need not wait for it."""
        filled = _event(self._device)

        def run() -> None:
            self._joined.result()
            if filled is not None:
                filled.wait()  # the thread's stream does
            _broadcast(self._group, buffer, self._device)

        return self._thread.submit(run)

    def close(self) -> None:
        """Ends what is on its way, from whatever thread."""
        self._is_closed = True
        self._to_receivers.set(OVER, "")
        _abort(self._group)
        self._thread.shutdown(wait=False, cancel_futures=True)


def _join(store: dist.Store, rank: int, world_size: int, device: torch.device, timeout: timedelta) -> Any:
    """A process group that is no part of torch.distributed's default one: vLLM and Megatron have theirs."""
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, world_size, options)
    return dist.ProcessGroupGloo(store, rank, world_size, timeout)


def _broadcast(group: Any, buffer: Tensor, device: torch.device, is_over: Callable[[], bool] | None = None) -> None:
    """From rank 0; returns when the bytes have come, or have been taken.

    Args:
        is_over: of a receiver: whether the leader has given up, and with it the broadcast.
    """
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([buffer], options).wait()  # with NCCL only this thread's stream waits
    done = _event(device)
    if done is None:
        return
    if is_over is None:
        done.synchronize()
        return
    asked = time.monotonic()
    while not done.query():
        time.sleep(LOOK_EVERY_S)
        if time.monotonic() - asked > ASK_EVERY_S:
            asked = time.monotonic()
            if is_over() and not done.query():
                _abort(group)
                raise RuntimeError("the sender has left the group: another of its receivers is gone")


def _is_over(store: Any) -> bool:
    try:
        return store.check([OVER])
    except RuntimeError:
        return True  # the leader's process has ended, and the store with it


def _event(device: torch.device) -> Any:
    """Set when the device has done what this thread's stream has been given so far; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(blocking=True)  # who waits for it sleeps
    event.record()
    return event


def _abort(group: Any) -> None:
    """Ends what is on its way. Only NCCL can wait for ever on a peer that has died."""
    if group is not None and hasattr(group, "abort"):
        group.abort()
