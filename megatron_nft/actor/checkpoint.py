"""Sharded save and resume of the actor through Megatron-Core's dist_checkpointing.

Weights, the optimizer's master weights and moments, the schedule and the random state of all ranks go into one folder
in Megatron's torch_dist format, each number once. It can be read in any other layout. Called by actor/worker.py.

A save is begun by a copy; a thread of each rank writes and hashes its files while training goes on. Megatron-Core's own
callers of its writer fork the rank, or keep a process beside it that outlives a rank that is killed; a thread does
neither. Adapted to megatron-core 0.16.1 and 0.19.2: `_write` and RESULTS. To be removed when it writes from a thread.
"""

import inspect
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model
from torch import nn

from megatron_nft.actor.checkpoint_metadata import check_format, read_common, read_metadata
from megatron_nft.actor.fp8_scales import EXTRA_STATE, plain, set_scales
from megatron_nft.actor.manifest import FileRecord, record
from megatron_nft.actor.topology import Topology

SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Optimizer state by parameter, not by data-parallel shard: a resume may have another layout. Handed out as a copy:
Megatron writes a process group into it, which is gone once the rank serves another run."""
FROM_THE_RECIPE = ("betas", "eps", "max_lr", "min_lr")
"""Settings, the same in all of the optimizer's groups, that are the recipe's and not the checkpoint's."""
AXES = ("pp", "dp", "cp", "tp")
COORDINATOR_FILES = ("metadata.json", ".metadata", "common.pt")
"""Written by rank 0 once all others have written theirs; the last by megatron-core before 0.19 only."""
HAS_STRATEGIES = "async_strategy" in inspect.signature(dist_checkpointing.save).parameters
"""megatron-core 0.19 has two, and its own is not the default."""
RESULTS: queue.Queue = queue.Queue()
"""In place of the writer's queue between processes, for which it would start one."""


class Save:
    """A checkpoint on its way: copied, and being written by a thread."""

    def __init__(self, request: AsyncRequest, folder: Path) -> None:
        self._request, self._folder = request, folder
        self._written: Future[dict[str, FileRecord]] = Future()
        self._written.set_result({})
        if request.async_fn is not None:
            buckets = _copied(request)
            transforms = request.async_fn.args[0]
            thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self._written = thread.submit(_write, transforms, buckets)
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

    def finish(self) -> dict[str, FileRecord]:
        """Waits for the thread, then writes what describes the whole. A collective of all ranks.

        To be called when no rank has an error: where one can't come, the others wait for it.

        Returns:
            Name -> record of the files that this rank wrote.
        """
        records = self._written.result()
        for finalize in self._request.finalize_fns:
            finalize()
        if torch.distributed.get_rank() == 0:
            written = [name for name in COORDINATOR_FILES if (self._folder / name).exists()]
            records |= {name: record(self._folder / name) for name in written}
        return records


def begin_save(
    folder: Path,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
    topology: Topology,
    *,
    step: int,
    policy_version: int,
) -> Save:
    """Copies the state of all ranks and begins to write it into `folder`, which exists. A collective of all ranks.

    Needs at least one update. `step` and `policy_version` are for who looks into the checkpoint.
    """
    filesystem_async._results_queue = RESULTS
    while not RESULTS.empty():  # of a save that was given up
        RESULTS.get()
    state = _state(model, optimizer, schedule, is_loading=False)
    state |= {"step": step, "policy_version": policy_version, "layout": _layout(topology), "random": _random(topology)}
    strategy = {"async_strategy": "mcore"} if HAS_STRATEGIES else {}
    return Save(dist_checkpointing.save(state, str(folder), async_sharded_save=True, **strategy), folder)


def load_checkpoint(
    folder: Path,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
    topology: Topology,
) -> None:
    """Reads what a `Save` has written, in this layout or another. A collective of all ranks.

    In the same layout every rank gets its random state back; in another there is no such thing.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not to be trusted.
    """
    _check(folder)
    state = _state(model, optimizer, schedule, is_loading=True)
    if dist_checkpointing.load_common_state_dict(str(folder)).get("layout") == _layout(topology):
        state["random"] = _random(topology)
    state = dist_checkpointing.load(state, str(folder))
    for number, chunk in enumerate(model):
        unwrap_model(chunk).load_state_dict(set_scales(unwrap_model(chunk), state[f"model{number}"]))
    for group in state["optimizer"]["optimizer"]["param_groups"]:
        group.update({name: optimizer.param_groups[0][name] for name in FROM_THE_RECIPE})
    optimizer.load_state_dict(state["optimizer"])
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
    _check(folder)
    chunks = [unwrap_model(chunk) for chunk in model]
    state = {f"model{number}": _weights(chunk) for number, chunk in enumerate(chunks)}
    state = dist_checkpointing.load(state, str(folder))
    for number, chunk in enumerate(chunks):
        missing = chunk.load_state_dict(state[f"model{number}"], strict=False).missing_keys
        assert all(name.endswith(EXTRA_STATE) for name in missing), missing


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


def _write(transforms: list, buckets: list[tuple]) -> dict[str, FileRecord]:
    """Runs in the thread: Megatron's writer for each file, with fsync; then the files' hashes."""
    results = {}
    for index, bucket in enumerate(buckets):
        outcomes: queue.Queue = queue.Queue()
        count: queue.Queue = queue.Queue()
        count.put(index)
        write = filesystem_async.FileSystemWriterAsync.write_preloaded_data
        write(transforms, index, bucket, outcomes, count, use_fsync=True)
        _, outcome = outcomes.get_nowait()
        if isinstance(outcome, Exception):
            raise outcome
        results[index] = outcome
    RESULTS.put(results)
    return {name: record(Path(path)) for path, name, _ in buckets}


def _weights(chunk: nn.Module) -> dict[str, Any]:
    """Without the layers' extra state, which is FP8's scales: a checkpoint made from an HF folder has none."""
    state = chunk.sharded_state_dict(metadata=dict(SHARDING))
    return {name: value for name, value in state.items() if not name.endswith(EXTRA_STATE)}


def _check(folder: Path) -> None:
    """Megatron unpickles `.metadata` without limits: here it is read with limits first."""
    check_format(folder)
    read_metadata(folder)
    if (folder / "common.pt").exists():
        read_common(folder)


def _state(
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
    *,
    is_loading: bool,
) -> dict[str, Any]:
    sharding = dict(SHARDING)
    weights = {
        f"model{number}": unwrap_model(chunk).sharded_state_dict(metadata=sharding)
        for number, chunk in enumerate(model)
    }
    return {
        **{name: plain(unwrap_model(chunk), weights[name]) for name, chunk in zip(weights, model, strict=True)},
        "optimizer": optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=sharding),
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
