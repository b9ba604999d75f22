"""Recipes near a plan's that fit: other layouts of its ranks, other engines and placements, another number of devices.

A Plan comes in, Suggestions go out, each with the overrides that lead to it. Called by the command line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log2
from typing import Any

from megatron_nft.config import Config, RecipeError, check_layout
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.planner import Plan, make_plan

MOST_CONTEXT = 8
"""Largest actor.cp that is tried."""
AXES, RECOMPUTATIONS = ("tp", "pp", "cp", "dp"), ("none", "selective", "full")
ACTOR_EIGHTHS = (2, 3, 4, 5, 6)
"""Of the devices, that the actor gets where engines have their own."""
SPLIT_FRACTION, COLOCATED_FRACTIONS = 0.9, (0.7, 0.6, 0.5)
"""rollout.gpu_memory_fraction where engines are alone, and where the recipe's own leaves the actor no room."""


@dataclass(frozen=True)
class Suggestion:
    """A recipe that fits."""

    plan: Plan
    distance: float  # doublings of axes, and a half for another recomputation
    changes: tuple[str, ...]  # overrides


def suggest(plan: Plan) -> list[Suggestion]:
    """Layouts of the same number of actor ranks that fit, nearest first, the faster of equals first."""
    config, found = plan.config, []
    for changed, distance in _layouts_of(plan, config, config.actor.world_size):
        other = make_plan(changed, plan.hf, plan.machine, plan.assumptions)
        if other.fits:
            found.append(Suggestion(other, distance, _changes(config, changed)))
    return sorted(found, key=lambda s: (s.distance, s.plan.seconds))


def suggest_clusters(plan: Plan, devices: int) -> list[Suggestion]:
    """For every placement, share of the actor and tp of the engines on so many devices: the actor's fastest layout
    that fits. The shortest synchronous step first."""
    found: dict[tuple[str, int, int], Suggestion] = {}  # by placement, ranks and the engines' tp: the largest KV cache
    for placement, ranks in _placements(devices, plan.machine.gpus_per_node):
        layouts: list[tuple[float, Config, float]] | None = None
        for engines in _engines(plan, placement, devices - ranks if placement == "split" else devices):
            key = placement, ranks, engines["rollout"]["tp"]
            if key in found or (based := _changed(plan.config, plan.hf, engines)) is None:
                continue
            if layouts is None:  # how long an actor trains does not depend on engines
                layouts = _by_training_time(plan, based, ranks)
            for _, layout, distance in layouts:
                changed = _changed(layout, plan.hf, engines)
                other = changed and make_plan(changed, plan.hf, plan.machine, plan.assumptions)
                if other and other.fits:
                    found[key] = Suggestion(other, distance, _changes(plan.config, other.config))
                    break
    return sorted(found.values(), key=lambda s: s.plan.seconds)


def fastest(suggestions: Sequence[Suggestion]) -> Suggestion | None:
    """The one with the shortest synchronous step."""
    return min(suggestions, key=lambda s: s.plan.seconds if s.plan.fits else inf, default=None)


def fastest_asynchronous(suggestions: Sequence[Suggestion]) -> Suggestion | None:
    """The one with the shortest asynchronous step; None: none has any."""
    ahead = [s for s in suggestions if s.plan.asynchronous]
    return min(ahead, key=lambda s: max(s.plan.asynchronous), default=None)


def _by_training_time(plan: Plan, config: Config, ranks: int) -> list[tuple[float, Config, float]]:
    """The actor's layouts in which it can train, by the seconds of scoring and training; with the optimizer in host
    memory if there is none without."""
    on_host = _changed(config, plan.hf, {"optimizer": {"optimizer_cpu_offload": True}})
    timed: list[tuple[float, Config, float]] = []
    for based in [config, *([on_host] if on_host is not None and config.cluster.device == "cuda" else [])]:
        has_room: set[tuple[int, ...]] = set()  # layouts, with less recomputation
        for changed, distance in _layouts_of(plan, based, ranks):
            if (axes := tuple(getattr(changed.actor, axis) for axis in AXES)) in has_room:
                continue
            other = make_plan(changed, plan.hf, plan.machine, plan.assumptions)
            if not any(problem.startswith(("train", "log-prob", "actor", "host")) for problem in other.problems):
                timed.append((other.seconds_of("hand-over", "log-prob", "train"), changed, distance))
                has_room.add(axes)
        if timed:
            break
    return sorted(timed, key=lambda each: (each[0], each[2]))


def _placements(devices: int, node: int) -> Iterator[tuple[str, int]]:
    """Placement and the actor's ranks."""
    yield "colocated", devices
    unit = node if devices >= 4 * node else 1
    for ranks in dict.fromkeys(devices * eighths // 8 // unit * unit for eighths in ACTOR_EIGHTHS):
        if 0 < ranks < devices:
            yield "split", ranks


def _engines(plan: Plan, placement: str, devices: int) -> Iterator[dict[str, Any]]:
    """Settings of the engines on so many devices: every tp, and how much of a device they take."""
    hf, now = plan.hf, plan.config.rollout.gpu_memory_fraction
    fractions = (
        [max(now, SPLIT_FRACTION)] if placement == "split" else [now, *(f for f in COLOCATED_FRACTIONS if f < now)]
    )
    for tp in range(1, plan.machine.gpus_per_node + 1):
        divides = not (devices % tp or plan.machine.gpus_per_node % tp or hf.num_attention_heads % tp)
        if divides and hf.num_key_value_heads % tp == 0:
            for fraction in fractions:
                rollout = {"tp": tp, "engines": devices // tp, "gpu_memory_fraction": fraction}
                yield {"rollout": rollout, "cluster": {"placement": placement, "actor_ranks": None}}


def _layouts_of(plan: Plan, config: Config, ranks: int) -> Iterator[tuple[Config, float]]:
    """Recipes with so many ranks in every layout, and how far that is from the plan's."""
    actor = plan.config.actor
    for axes in _layouts(ranks, plan.machine.gpus_per_node, plan.hf):
        for recompute in RECOMPUTATIONS:
            changed = _changed(config, plan.hf, {"actor": _actor_of(config, {**axes, "recompute": recompute})})
            if changed is not None:
                distance = sum(abs(log2(axes[axis] / getattr(actor, axis))) for axis in AXES)
                yield changed, distance + 0.5 * (recompute != actor.recompute)


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


def _actor_of(config: Config, changes: dict[str, Any]) -> dict[str, Any]:
    """The actor's settings with another layout. Uneven and virtual stages go where they don't fit."""
    actor = {**config.actor.model_dump(), **changes, "sequence_parallel": changes["tp"] > 1}
    if changes["pp"] != config.actor.pp:
        actor |= {"vpp": 1, "num_layers_in_first_pipeline_stage": None, "num_layers_in_last_pipeline_stage": None}
    if actor["tp_comm_overlap"] and (changes["tp"] == 1 or changes["cp"] > 1):
        actor["tp_comm_overlap"] = False
    return actor


def _changed(config: Config, hf: HFConfig, sections: dict[str, dict[str, Any]]) -> Config | None:
    """The recipe with other settings; None if it can't be."""
    tree = config.model_dump()
    for name, settings in sections.items():
        tree[name] = {**tree[name], **settings}
    try:
        changed = Config.model_validate(tree)
        check_layout(changed, hf)
    except (ValueError, RecipeError):
        return None
    return changed


def _changes(old: Config, new: Config) -> tuple[str, ...]:
    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    found = []
    for section in ("actor", "optimizer", "rollout", "cluster"):
        before, after = (getattr(config, section).model_dump() for config in (old, new))
        found += [
            f"{section}.{key}={text(after[key])}"
            for key in before
            if before[key] != after[key] and after[key] is not None
        ]
    return tuple(found)
