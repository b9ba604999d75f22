"""A plan as tables for people."""

from collections.abc import Sequence

from megatron_nft.plan.hardware import GIB
from megatron_nft.plan.planner import Plan, Suggestion, fastest

MOST_SUGGESTIONS = 6


def render(plan: Plan) -> str:
    """The whole plan, ready to print."""
    lines = [*_head(plan), "", *_memory(plan), "", *_host(plan), "", *_times(plan), ""]
    lines.append(f"bottleneck: {plan.bottleneck}")
    lines += [f"does not fit: {problem}" for problem in plan.problems] or ["fits"]
    return "\n".join(lines)


def render_suggestions(suggestions: Sequence[Suggestion]) -> str:
    """The nearest layouts that fit, and the fastest."""
    if not suggestions:
        return "no layout of these devices fits; use more of them, shorter answers, or optimizer.optimizer_cpu_offload"
    shown = list(suggestions[:MOST_SUGGESTIONS])
    quickest = fastest(suggestions)
    if quickest is not None and quickest not in shown:
        shown.append(quickest)
    rows = [("layout", "recompute", "train GiB", "step s", "overrides")]
    for each in shown:
        actor, train = each.plan.config.actor, each.plan.memory.worst("train")
        mark = "  (fastest)" if each is quickest else ""
        rows.append(
            (
                actor.layout,
                actor.recompute,
                f"{train.total / GIB:.1f}" if train else "",
                f"{each.plan.seconds:.0f}",
                (" ".join(each.changes) or "as it is") + mark,
            )
        )
    return "\n".join(["layouts that fit, nearest first:", *_table(rows, "<<>><")])


def _head(plan: Plan) -> list[str]:
    config, work, actor = plan.config, plan.workload, plan.config.actor
    elements = sum(rank.stage_elements for rank in plan.ranks) / 1e9
    split = "" if config.is_colocated else f" + {config.rollout.engines * config.rollout.tp} of engines"
    return [
        f"{config.model.path}: {plan.hf.num_hidden_layers} layers, {elements:.2f} B parameters with padding | "
        f"{plan.num_devices} x {plan.machine.name}, {config.cluster.placement}",
        f"actor: {actor.world_size} ranks ({actor.layout}), {actor.precision}, recompute {actor.recompute}{split} | "
        f"{config.rollout.engines} engines of tp {config.rollout.tp}, {plan.memory.places} answers each at a time "
        f"(KV cache of {plan.engine.kv_tokens:,.0f} tokens)",
        f"a step: {work.answers:,.0f} answers sampled, {work.trained:,.0f} trained on (mixed share "
        f"{plan.assumptions.mixed_share:g}), {work.prompt_tokens:,.0f} + {work.answer_tokens:,.0f} tokens in the mean, "
        f"{work.updates} updates of {work.microbatches} microbatches a rank",
    ]


def _memory(plan: Plan) -> list[str]:
    """The fullest device of every phase."""
    worst = [usage for phase in plan.memory.phases if (usage := plan.memory.worst(phase))]
    names = list(dict.fromkeys(name for usage in worst for name in usage.parts))
    rows = [("GiB, fullest device", *(f"{u.phase} ({u.who.removeprefix('actor ')})" for u in worst))]
    for name in names:
        rows.append((name, *(f"{u.parts[name] / GIB:.2f}" if name in u.parts else "" for u in worst)))
    rows.append(("total", *(f"{u.total / GIB:.2f}" for u in worst)))
    rows.append((f"of {plan.machine.memory_gib:g}", *("ok" if u.fits else "TOO MUCH" for u in worst)))
    return _table(rows, "<" + ">" * len(worst))


def _host(plan: Plan) -> list[str]:
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in plan.memory.host_parts.items())
    total = sum(plan.memory.host_parts.values()) / GIB
    return [f"host memory of a node: {total:,.0f} of {plan.machine.host_memory_gib:,.0f} GiB ({parts})"]


def _times(plan: Plan) -> list[str]:
    rows = [("stage", "seconds", "of what")]
    for stage in plan.stages:
        parts = sorted(stage.parts.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts if seconds >= 0.01 * stage.seconds)
        rows.append((stage.name, f"{stage.seconds:.1f}", shown))
    rows.append(("step", f"{plan.seconds:.1f}", f"{plan.tokens_per_s:,.0f} trained tokens/s per device"))
    if plan.asynchronous is not None:
        engines, trainer = plan.asynchronous
        words = f"megatron_nft.train_async: engines {engines:.1f} beside trainer {trainer:.1f}"
        rows.append(("async step", f"{max(engines, trainer):.1f}", words))
    return _table(rows, "<><")


def _table(rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, alignment, widths, strict=True)).rstrip()
        for row in rows
    ]
