"""Seconds from the driver's first line to the first step: processes, imports, weights, engines, the first sync.

Ranks and engines are processes that import their libraries from a file system that all nodes share, and read the model
from it: a node reads the stages that its ranks hold, once, whatever the number of its ranks (its page cache has them).
Engines read no weights. On shared devices they start after the ranks, whose weights they must see to count free memory.
"""

from dataclasses import dataclass

from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.hardware import Machine
from megatron_nft.plan.memory import weight_element_bytes
from megatron_nft.plan.parameters import RankParameters


@dataclass(frozen=True, kw_only=True)
class Start:
    """Of a run, by what it goes into."""

    parts: dict[str, float]
    read_bytes: float  # by all nodes together

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def plan_start(
    config: Config, hf: HFConfig, machine: Machine, ranks: list[RankParameters], sync_s: float
) -> Start | None:
    """None on a CPU: there hardware.toml knows no storage and no network.

    Args:
        ranks: `parameters_of_rank` of every pipeline rank.
    """
    if config.cluster.device == "cpu":
        return None
    e, actor = machine.efficiency, config.actor
    read = sum(_stage_bytes(config, ranks, stages) for stages in _stages_by_node(config, machine))
    nodes = -(-actor.world_size // machine.gpus_per_node)
    rate = min(e.storage_gb_s, nodes * e.node_storage_gb_s) * 1e9
    parts = {
        "processes": e.process_start_s,
        "imports": e.import_s,
        "process groups": actor.world_size * e.group_rank_ms * 1e-3,
        "weights from storage": read / rate,
    }
    engines = e.engine_start_s
    if config.is_colocated:
        parts["engines, after the ranks"] = engines
    else:
        beside = sum(parts.values()) - parts["processes"] - parts["imports"]
        parts["engines, beside the ranks"] = max(engines - beside, 0.0)
    parts["first weight sync"] = sync_s
    return Start(parts=parts, read_bytes=read)


def _stages_by_node(config: Config, machine: Machine) -> list[set[int]]:
    """Pipeline stages whose ranks lie on each node, ranks filling nodes in order."""
    world, of_stage = config.actor.world_size, config.actor.world_size // config.actor.pp
    nodes = range(0, world, machine.gpus_per_node)
    return [{rank // of_stage for rank in range(first, min(first + machine.gpus_per_node, world))} for first in nodes]


def _stage_bytes(config: Config, ranks: list[RankParameters], stages: set[int]) -> float:
    return sum(weight_element_bytes(config) * ranks[stage].stage_elements for stage in stages)
