"""Sharded save and resume of the actor through Megatron-Core's dist_checkpointing.

Weights, the optimizer's master weights and moments, the schedule and the random state of all ranks go into one folder
in Megatron's torch_dist format, each number once, by as many ranks as have it, each its share. It can be read in any
other layout. Called by actor/worker.py.

A save is begun by a copy; a thread of each rank writes and hashes its files while training goes on, and last a word
that they are written (checkpoint_parts.py), of which the whole is made without the ranks. Megatron-Core's own callers
of its writer fork the rank, or keep a process beside it that outlives a rank that is killed, and complete a save by a
collective of all ranks, for which these would have to be idle. Adapted to megatron-core 0.16.1 and 0.19.2: `_write`,
`_Plan` and NO_QUEUE. To be removed when it writes from a thread.
"""

import inspect
import os
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model
from torch import nn
from torch.distributed.checkpoint.storage import WriteResult

from megatron_nft.actor.adapter_record import ADAPTER, check_same_adapter
from megatron_nft.actor.checkpoint_metadata import COMMON, check_pickles, read_as_data
from megatron_nft.actor.checkpoint_parts import assemble, forget_parts, write_part, write_plan
from megatron_nft.actor.fp8_scales import is_extra_state, plain, set_scales
from megatron_nft.actor.manifest import record, to_disk
from megatron_nft.actor.optimizer_shares import load_optimizer_state, optimizer_state
from megatron_nft.actor.topology import Topology
from megatron_nft.families.lora import is_adapter

FROM_THE_RECIPE = ("betas", "eps", "max_lr", "min_lr")
"""Settings, the same in all of the optimizer's groups, that are the recipe's and not the checkpoint's."""
AXES = ("pp", "dp", "cp", "tp")
HAS_STRATEGIES = "async_strategy" in inspect.signature(dist_checkpointing.save).parameters
"""megatron-core 0.19 has two, and its own is not the default."""
NO_QUEUE: queue.Queue = queue.Queue()
"""In place of the writer's queue between processes, for which it would start one. Nothing comes through it."""


class _Plan(TorchDistSaveShardedStrategy):
    """Megatron's plan of a save, and on rank 0 what it knows of all tensors.

    Attributes:
        metadata: of all ranks' tensors, without their places; None elsewhere.
    """

    metadata: Any = None

    def _get_save_and_finalize_callbacks(self, writer: Any, planned: tuple, *more: Any) -> AsyncRequest:
        self.metadata = planned[1]
        return super()._get_save_and_finalize_callbacks(writer, planned, *more)


class Save:
    """A checkpoint on its way: copied, and this rank's share being written by a thread."""

    def __init__(self, request: AsyncRequest, plan: _Plan, folder: Path) -> None:
        self._folder = folder
        buckets, transforms = [], []
        if request.async_fn is not None:
            buckets, transforms = _copied(request), request.async_fn.args[0]
        rank = torch.distributed.get_rank(), torch.distributed.get_world_size()
        thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] = thread.submit(_write, folder, rank, plan.metadata, transforms, buckets)
        thread.shutdown(wait=False)

    @property
    def is_written(self) -> bool:
        """Whether the thread has ended, well or not."""
        return self._written.done()

    @property
    def error(self) -> str | None:
        """Of a thread that has ended, why it could not write."""
        error = self._written.exception()
        while error is not None and not isinstance(error, OSError) and error.__context__ is not None:
            error = error.__context__  # torch's writer says "unexpected pos" after a full disk's error
        return None if error is None else str(error)

    def finish(self) -> None:
        """Waits for all ranks' threads, and makes the whole of their parts, where no driver does. A collective."""
        self._written.result()
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            assemble(self._folder)
            forget_parts(self._folder)
        torch.distributed.barrier()


def begin_save(
    folder: Path,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
    topology: Topology,
    *,
    step: int,
    policy_version: int,
    adapter: dict[str, Any] | None = None,
) -> Save:
    """Copies the state of all ranks and begins to write it into `folder`, which exists. A collective of all ranks.

    Needs at least one update. `step` and `policy_version` are for who looks into the checkpoint.

    Args:
        adapter: what the adapters are, and whose: they are saved in place of the whole model.
    """
    filesystem_async._results_queue = NO_QUEUE
    state = _state(model, optimizer, schedule, is_loading=False, only_adapters=adapter is not None)
    state |= {"step": step, "policy_version": policy_version, "layout": _layout(topology), "random": _random(topology)}
    state["layout"]["vpp"] = len(model)
    if model[0].config.num_moe_experts:
        state["layout"] |= {"ep": topology.ep_size, "etp": topology.etp_size}
    if adapter is not None:
        state[ADAPTER] = adapter
    plan = _Plan("torch_dist", 1)
    # What the ranks of this group have alike, such as weights, is written by the one that has least to write.
    shared = FullyParallelSaveStrategyWrapper(plan, parallel_state.get_data_parallel_group(with_context_parallel=True))
    strategy = {"async_strategy": "mcore"} if HAS_STRATEGIES else {}
    request = dist_checkpointing.save(state, str(folder), shared, async_sharded_save=True, **strategy)
    return Save(request, plan, folder)


def load_checkpoint(
    folder: Path,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
    topology: Topology,
    adapter: dict[str, Any] | None = None,
) -> None:
    """Reads what a `Save` has written, in this layout or another. A collective of all ranks.

    In the same layout every rank gets its random state back; in another there is no such thing.

    Raises:
        CheckpointError: there is no such checkpoint, it is not to be trusted, or its adapters are others, or another
            model's.
    """
    check_pickles(folder)
    state = _state(model, optimizer, schedule, is_loading=True, only_adapters=adapter is not None)
    with read_as_data(folder):
        common = dist_checkpointing.load_common_state_dict(str(folder))
        check_same_adapter(folder, common.get(ADAPTER), adapter)
        if _layout(topology).items() <= common.get("layout", {}).items():
            state["random"] = _random(topology)
        state = dist_checkpointing.load(state, str(folder))
        for number, chunk in enumerate(map(unwrap_model, model)):
            loaded = state[f"model{number}"]
            unread = chunk.load_state_dict(set_scales(chunk, loaded), strict=adapter is None).missing_keys
            assert not any(map(is_adapter, unread)), unread
            set_scales(chunk, loaded)  # FP8 parameters write what they saw into them while they are loaded
    for group in state["optimizer"]["optimizer"]["param_groups"]:
        group.update({name: optimizer.param_groups[0][name] for name in FROM_THE_RECIPE})
    load_optimizer_state(optimizer, state["optimizer"])
    schedule.num_steps = 0  # loading counts on from here
    schedule.load_state_dict(state["schedule"])
    if "random" in state:
        torch.set_rng_state(state["random"]["cpu"])
        torch.cuda.set_rng_state(state["random"]["cuda"])
        get_cuda_rng_tracker().set_states(state["random"]["tracker"])


def load_weights(folder: Path, model: Sequence[nn.Module]) -> None:
    """Reads weights alone, of a checkpoint with or without optimizer, in any layout. A collective of all ranks.

    Before an optimizer is built: its master weights start from the model's.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not to be trusted.
    """
    check_pickles(folder)
    chunks = [unwrap_model(chunk) for chunk in model]
    state = {f"model{number}": _weights(chunk) for number, chunk in enumerate(chunks)}
    with read_as_data(folder):
        check_same_adapter(folder, dist_checkpointing.load_common_state_dict(str(folder)).get(ADAPTER), None)
        state = dist_checkpointing.load(state, str(folder))
    for number, chunk in enumerate(chunks):
        missing = chunk.load_state_dict(state[f"model{number}"], strict=False).missing_keys
        assert all(is_extra_state(name) or is_adapter(name) for name in missing), missing


def _copied(request: AsyncRequest) -> list[tuple]:
    """What this rank is to write, in host memory of its own: training changes the tensors in place."""
    buckets = []
    for before, (path, name, (objects, tensors)) in zip(
        request.async_fn_args[1], request.preload_fn(), strict=True
    ):  # Megatron's preload copies from a GPU, and leaves what is on a CPU
        originals = [tensor for _, tensor in before[2][1]]
        tensors = [
            (item, tensor.clone() if original.device.type == "cpu" else tensor)
            for (item, tensor), original in zip(tensors, originals, strict=True)
        ]
        buckets.append((path, name, (objects, tensors)))
    return buckets


def _write(folder: Path, rank: tuple[int, int], metadata: Any, transforms: list, buckets: list[tuple]) -> None:
    """Runs in the thread: Megatron's writer for each file, with fsync; then the files' hashes, and the rank's word."""
    begun = os.open(folder, os.O_RDONLY)
    try:
        results = []
        for bucket in buckets:
            _check_same(folder, begun)
            results += _write_file(transforms, bucket)
        paths = [Path(path) for path, _, _ in buckets]
        if metadata is not None and (folder / COMMON).exists():  # rank 0
            to_disk(folder / COMMON)
            paths.append(folder / COMMON)
        files = {path.name: record(path) for path in paths}
        to_disk(folder)
        _check_same(folder, begun)
        if metadata is not None:
            write_plan(folder, metadata)
        write_part(folder, *rank, files, results)
    finally:
        os.close(begun)


def _write_file(transforms: list, bucket: tuple) -> list[WriteResult]:
    outcomes: queue.Queue = queue.Queue()
    count: queue.Queue = queue.Queue()
    count.put(0)
    filesystem_async.FileSystemWriterAsync.write_preloaded_data(transforms, 0, bucket, outcomes, count, use_fsync=True)
    _, outcome = outcomes.get_nowait()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _check_same(folder: Path, begun: int) -> None:
    """A save that was given up may have been begun anew in a folder of its name: that is none of this thread's.

    Args:
        begun: the open folder, whose number no other gets meanwhile.
    """
    if folder.stat().st_ino != os.fstat(begun).st_ino:
        raise OSError(f"{folder}: deleted meanwhile")


def _weights(chunk: nn.Module) -> dict[str, Any]:
    """Without the layers' extra state, which is FP8's scales: a checkpoint made from an HF folder has none."""
    state = chunk.sharded_state_dict(metadata={})
    return {name: value for name, value in state.items() if not is_extra_state(name) and not is_adapter(name)}


def _state(
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
    *,
    is_loading: bool,
    only_adapters: bool,
) -> dict[str, Any]:
    weights = {
        f"model{number}": unwrap_model(chunk).sharded_state_dict(metadata={}) for number, chunk in enumerate(model)
    }
    if only_adapters:  # and FP8's scales, which follow what is trained
        weights = {
            name: {key: value for key, value in state.items() if is_adapter(key) or is_extra_state(key)}
            for name, state in weights.items()
        }
    return {
        **{name: plain(unwrap_model(chunk), weights[name]) for name, chunk in zip(weights, model, strict=True)},
        "optimizer": optimizer_state(optimizer, weights, is_loading=is_loading),
        "schedule": schedule.state_dict(),
    }


def _layout(topology: Topology) -> dict[str, int]:
    return {axis: getattr(topology, f"{axis}_size") for axis in AXES}


def _random(topology: Topology) -> ShardedObject:
    """The generators that a rank draws from."""
    state = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "tracker": get_cuda_rng_tracker().get_states(),
    }
    place = tuple(getattr(topology, f"{axis}_rank") for axis in AXES)
    return ShardedObject("random", state, tuple(_layout(topology).values()), place)
