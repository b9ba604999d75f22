"""Sharded save and resume of the actor through Megatron-Core's dist_checkpointing.

Weights, the optimizer's master weights and moments, and the schedule of all ranks go into one folder in Megatron's
torch_dist format, each number once. It can be read in any other layout. Called by actor/worker.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model
from torch import nn

SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Optimizer state by parameter, not by data-parallel shard: a resume may have another layout."""
EXTRA_STATE = "_extra_state"


class CheckpointError(RuntimeError):
    """A folder is not a checkpoint that this actor can read."""


def save_checkpoint(
    folder: Path,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
) -> None:
    """Writes the state of all ranks into `folder`, which exists and is empty. A collective of all ranks."""
    dist_checkpointing.save(_state(model, optimizer, schedule, is_loading=False), str(folder))


def load_checkpoint(
    folder: Path,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
) -> None:
    """Reads what `save_checkpoint` wrote, in this layout or another. A collective of all ranks.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    _check(folder)
    state = dist_checkpointing.load(_state(model, optimizer, schedule, is_loading=True), str(folder))
    for number, chunk in enumerate(model):
        unwrap_model(chunk).load_state_dict(state[f"model{number}"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.num_steps = 0  # loading counts on from here
    schedule.load_state_dict(state["schedule"])


def load_weights(folder: Path, model: Sequence[nn.Module]) -> None:
    """Reads weights alone, of a checkpoint with or without optimizer, in any layout. A collective of all ranks.

    Before an optimizer is built: its master weights start from the model's.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    _check(folder)
    chunks = [unwrap_model(chunk) for chunk in model]
    state = {f"model{number}": _weights(chunk) for number, chunk in enumerate(chunks)}
    state = dist_checkpointing.load(state, str(folder))
    for number, chunk in enumerate(chunks):
        missing = chunk.load_state_dict(state[f"model{number}"], strict=False).missing_keys
        assert all(name.endswith(EXTRA_STATE) for name in missing), missing


def _weights(chunk: nn.Module) -> dict[str, Any]:
    """Without the layers' extra state, which is FP8's scales: a checkpoint made from an HF folder has none."""
    state = chunk.sharded_state_dict(metadata=SHARDING)
    return {name: value for name, value in state.items() if not name.endswith(EXTRA_STATE)}


def _check(folder: Path) -> None:
    if not dist_checkpointing.check_is_distributed_checkpoint(str(folder)):
        raise CheckpointError(f"{folder} is no checkpoint: it has no metadata.json of Megatron's torch_dist format")


def _state(
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    schedule: OptimizerParamScheduler,
    *,
    is_loading: bool,
) -> dict[str, Any]:
    weights = {
        f"model{number}": unwrap_model(chunk).sharded_state_dict(metadata=SHARDING)
        for number, chunk in enumerate(model)
    }
    return {
        **weights,
        "optimizer": optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=SHARDING),
        "schedule": schedule.state_dict(),
    }
