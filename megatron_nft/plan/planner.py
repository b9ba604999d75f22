"""A recipe -> what it takes: memory by rank and phase, seconds by stage, whether it fits, and what is in the way.

`make_plan` for one recipe; `suggest` for the layouts near it. Called by the command line (plan/__main__.py), and by
whoever wants to know before a job starts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf, log2
from typing import Any

from megatron_nft.config import Config, RecipeError, check_layout
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.engine import Engine, engine_of
from megatron_nft.plan.hardware import Machine
from megatron_nft.plan.memory import Memory, plan_memory
from megatron_nft.plan.parameters import RankParameters, parameters_of_rank
from megatron_nft.plan.times import Stage, plan_times
from megatron_nft.plan.workload import Assumptions, Workload, workload


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe takes on a machine."""

    config: Config
    hf: HFConfig
    machine: Machine
    assumptions: Assumptions
    workload: Workload
    engine: Engine
    ranks: tuple[RankParameters, ...]  # by pipeline rank
    memory: Memory
    stages: tuple[Stage, ...]
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.problems

    @property
    def num_devices(self) -> int:
        workers = self.config.rollout.engines * self.config.rollout.tp
        return self.config.actor.world_size + (0 if self.config.is_colocated else workers)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def asynchronous(self) -> tuple[float, float] | None:
        """Seconds of an asynchronous step (train_async.py) on its engines and on its trainer, a sync included; the step
        takes the longer. None where both are on the same devices."""
        if self.config.is_colocated:
            return None
        seconds = {stage.name: stage.seconds for stage in self.stages}
        return seconds["rollout"] + seconds["sync"], seconds["log-prob"] + seconds["train"] + seconds["sync"]

    @property
    def bottleneck(self) -> str:
        """The longest stage, and what it goes into most."""
        longest = max(self.stages, key=lambda stage: stage.seconds)
        share = longest.seconds / self.seconds
        part = longest.largest_part
        return (
            f"{longest.name} ({share:.0%} of the step), most of it {part} ({longest.parts[part] / longest.seconds:.0%})"
        )

    @property
    def tokens_per_s(self) -> float:
        """Trained on, prompts included, per second and device."""
        return self.workload.trained * self.workload.sequence_tokens / self.seconds / self.num_devices

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for --json: bytes and seconds."""
        return {
            "fits": self.fits,
            "problems": list(self.problems),
            "machine": self.machine.name,
            "devices": self.num_devices,
            "layout": self.config.actor.layout,
            "placement": self.config.cluster.placement,
            "seconds": self.seconds,
            "asynchronous_seconds": self.asynchronous and max(self.asynchronous),
            "bottleneck": self.bottleneck,
            "tokens_per_s_per_device": self.tokens_per_s,
            "stages": [{"name": s.name, "seconds": s.seconds, "parts": s.parts} for s in self.stages],
            "memory": [
                {"phase": u.phase, "who": u.who, "bytes": u.total, "limit": u.limit, "parts": u.parts}
                for u in self.memory.usages
            ],
            "host": {"bytes": sum(self.memory.host_parts.values()), "limit": self.memory.host_limit,
                     "parts": self.memory.host_parts},
            "engine": {"kv_tokens": self.engine.kv_tokens, "answers_at_a_time": self.memory.places},
            "parameters": [
                {"stage": stage, "elements": r.elements, "buffer": r.buffer_elements, "largest_shard": max(r.shards)}
                for stage, r in enumerate(self.ranks)
            ],
            "workload": {
                "answers_sampled": self.workload.answers,
                "answers_trained": self.workload.trained,
                "answer_tokens": self.workload.answer_tokens,
                "prompt_tokens": self.workload.prompt_tokens,
                "updates": self.workload.updates,
                "microbatches": self.workload.microbatches,
            },
            "assumptions": asdict(self.assumptions),
        }  # fmt: skip


def make_plan(config: Config, hf: HFConfig, machine: Machine, assumptions: Assumptions | None = None) -> Plan:
    """The plan of a recipe that `load_config` has accepted."""
    assumptions = assumptions or Assumptions()
    work = workload(config, assumptions, machine.efficiency.imbalance)
    engine = engine_of(hf, config.rollout, machine, on_cpu=config.cluster.device == "cpu")
    ranks = [parameters_of_rank(hf, config.actor, rank, config.lora.adapters) for rank in range(config.actor.pp)]
    memory = plan_memory(config, hf, work, engine, machine, ranks)
    return Plan(
        config=config,
        hf=hf,
        machine=machine,
        assumptions=assumptions,
        workload=work,
        engine=engine,
        ranks=tuple(ranks),
        memory=memory,
        stages=plan_times(config, hf, work, engine, machine, ranks, memory.places),
        problems=(*memory.problems, *_placement_problems(config, machine)),
    )


def _placement_problems(config: Config, machine: Machine) -> Iterator[str]:
    """What a node can't give."""
    if config.cluster.device == "cpu":
        return
    for key, tp in (("actor.tp", config.actor.tp), ("rollout.tp", config.rollout.tp)):
        if tp > machine.gpus_per_node:
            yield (
                f"{key} = {tp} crosses nodes of {machine.gpus_per_node} devices: every layer would wait for the "
                f"network; set it to {machine.gpus_per_node} at most, and raise pp or cp"
            )
        elif machine.gpus_per_node % tp:
            yield f"{key} = {tp} does not divide a node's {machine.gpus_per_node} devices: a group would cross nodes"
    if config.actor.precision.startswith("fp8") and not machine.fp8_tflops:
        yield f'actor.precision = "{config.actor.precision}": {machine.name} has no FP8; set "bf16"'


@dataclass(frozen=True)
class Suggestion:
    """A layout that fits."""

    plan: Plan
    distance: float  # doublings of axes, and a half for another recomputation
    changes: tuple[str, ...]  # overrides


MOST_CONTEXT = 8
"""Largest actor.cp that is tried."""


def suggest(plan: Plan) -> list[Suggestion]:
    """Layouts of the same number of actor ranks that fit, nearest first, the faster of equals first."""
    config, hf = plan.config, plan.hf
    world, found = config.actor.world_size, []
    for axes in _layouts(world, plan.machine.gpus_per_node, hf):
        for recompute in ("none", "selective", "full"):
            changed = _with_layout(config, hf, {**axes, "recompute": recompute})
            if changed is None:
                continue
            other = make_plan(changed, hf, plan.machine, plan.assumptions)
            if other.fits:
                distance = sum(abs(log2(axes[a] / getattr(config.actor, a))) for a in ("tp", "pp", "cp", "dp"))
                distance += 0.5 * (recompute != config.actor.recompute)
                found.append(Suggestion(other, distance, _changes(config, changed)))
    return sorted(found, key=lambda s: (s.distance, s.plan.seconds))


def _layouts(world: int, node: int, hf: HFConfig) -> Iterator[dict[str, Any]]:
    for tp in range(1, min(node, world) + 1):
        if world % tp or node % tp or hf.num_attention_heads % tp or hf.num_key_value_heads % tp:
            continue
        for pp in range(1, min(world // tp, hf.num_hidden_layers) + 1):
            if (world // tp) % pp or hf.num_hidden_layers % pp:
                continue
            cp = 1
            while cp <= MOST_CONTEXT and (world // tp // pp) % cp == 0:
                yield {"tp": tp, "pp": pp, "cp": cp, "dp": world // (tp * pp * cp)}
                cp *= 2


def _with_layout(config: Config, hf: HFConfig, changes: dict[str, Any]) -> Config | None:
    """The recipe with another layout; None if it can't be. Uneven and virtual stages go where they don't fit."""
    actor = {**config.actor.model_dump(), **changes, "sequence_parallel": changes["tp"] > 1}
    if changes["pp"] != config.actor.pp:
        actor |= {"vpp": 1, "num_layers_in_first_pipeline_stage": None, "num_layers_in_last_pipeline_stage": None}
    if actor["tp_comm_overlap"] and (changes["tp"] == 1 or changes["cp"] > 1):
        actor["tp_comm_overlap"] = False
    try:
        changed = Config.model_validate({**config.model_dump(), "actor": actor})
        check_layout(changed, hf)
    except (ValueError, RecipeError):
        return None
    return changed


def _changes(old: Config, new: Config) -> tuple[str, ...]:
    before, after = old.actor.model_dump(), new.actor.model_dump()

    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return tuple(
        f"actor.{key}={text(after[key])}" for key in before if before[key] != after[key] and after[key] is not None
    )


def fastest(suggestions: Sequence[Suggestion]) -> Suggestion | None:
    """The one with the shortest step."""
    return min(suggestions, key=lambda s: s.plan.seconds if s.plan.fits else inf, default=None)
