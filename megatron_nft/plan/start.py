"""Seconds from the driver's first line to the first step: processes, imports, weights, engines, the first sync.

Ranks and engines are processes that start side by side and import their libraries from a file system that all nodes
share. Of the replicas one reads the model from it, and the others get what it has read: a node of the first replica
reads the stages that its ranks hold once, whatever the number of its ranks (its page cache has them). Engines read no
weights. On shared devices they are built after the ranks, whose weights they must see to count free memory.
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
    read_bytes: float  # by all nodes that read, together

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
    by_node = [_stage_bytes(config, ranks, stages) for stages in _stages_read_by_node(config, machine)]
    read_s = max(sum(by_node) / (e.storage_gb_s * 1e9), max(by_node) / (e.node_storage_gb_s * 1e9))
    shard = max(weight_element_bytes(config) * rank.elements for rank in ranks)
    to_others = shard / machine.link_bytes_per_s(actor.dp, actor.tp * actor.cp) if actor.dp * actor.cp > 1 else 0.0
    parts = {
        "processes": e.process_start_s,
        "imports": e.import_s,
        "process groups": actor.world_size * e.group_rank_ms * 1e-3,
        "weights from storage": read_s,
        "weights to the other replicas": to_others,
    }
    engines = e.engine_start_s
    if config.is_colocated:
        parts["engines, after the ranks"] = engines
    else:
        beside = sum(parts.values()) - parts["processes"] - parts["imports"]
        parts["engines, beside the ranks"] = max(engines - beside, 0.0)
    parts["first weight sync"] = sync_s
    return Start(parts=parts, read_bytes=sum(by_node))


def _stages_read_by_node(config: Config, machine: Machine) -> list[set[int]]:
    """Pipeline stages that are read on each node that has ranks of the first replica; ranks fill nodes in order."""
    actor, stages = config.actor, {}
    for pp_rank in range(actor.pp):
        for tp_rank in range(actor.tp):
            rank = tp_rank + pp_rank * actor.tp * actor.cp * actor.dp
            stages.setdefault(rank // machine.gpus_per_node, set()).add(pp_rank)
    return list(stages.values())


def _stage_bytes(config: Config, ranks: list[RankParameters], stages: set[int]) -> float:
    return sum(weight_element_bytes(config) * ranks[stage].stage_elements for stage in stages)
