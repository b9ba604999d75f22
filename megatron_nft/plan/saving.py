"""A checkpoint's seconds: the copy that training waits for, and the files that are written beside it.

Every rank copies what it is to write to host memory, and a thread of its own writes it (actor/checkpoint.py): the
optimizer's shard, and a share of the weights that its data-parallel group has alike.
"""

from dataclasses import dataclass

from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.disk import plan_disk
from megatron_nft.plan.hardware import Machine


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Of one checkpoint."""

    num_bytes: int
    copy_s: float
    write_s: float
    waits: bool  # training waits for the files, too

    @property
    def seconds(self) -> float:
        """That a step takes longer for it."""
        return self.copy_s + (self.write_s if self.waits else 0.0)


def plan_saving(config: Config, hf: HFConfig, machine: Machine) -> Saving | None:
    """None: the recipe saves nothing."""
    if not config.checkpoint.every:
        return None
    size, ranks, e = plan_disk(config, hf).checkpoint, config.actor.world_size, machine.efficiency
    nodes = -(-ranks // machine.gpus_per_node)
    return Saving(
        num_bytes=size,
        copy_s=size / ranks / (e.to_host_gb_s * 1e9) if config.cluster.device == "cuda" else 0.0,
        write_s=size / min(e.storage_gb_s * 1e9, nodes * e.node_storage_gb_s * 1e9),
        waits=not config.checkpoint.in_background,
    )
