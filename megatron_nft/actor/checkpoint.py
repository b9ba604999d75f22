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

SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Optimizer state by parameter, not by data-parallel shard: a resume may have another layout."""


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
    if not dist_checkpointing.check_is_distributed_checkpoint(str(folder)):
        raise CheckpointError(f"{folder} is no checkpoint: it has no metadata.json of Megatron's torch_dist format")
    state = dist_checkpointing.load(_state(model, optimizer, schedule, is_loading=True), str(folder))
    for number, chunk in enumerate(model):
        unwrap_model(chunk).load_state_dict(state[f"model{number}"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.num_steps = 0  # loading counts on from here
    schedule.load_state_dict(state["schedule"])


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
