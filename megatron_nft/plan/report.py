"""A plan as tables for people."""

from collections.abc import Sequence
from math import floor, log10

from megatron_nft.plan.hardware import GIB
from megatron_nft.plan.planner import Plan
from megatron_nft.plan.suggestions import Suggestion, fastest, fastest_asynchronous

MOST_SUGGESTIONS = 6


def render(plan: Plan) -> str:
    """The whole plan, ready to print."""
    lines = [*_head(plan), "", *_memory(plan), "", *_host(plan), "", *_times(plan), "", *_around(plan), ""]
    lines.append(f"bottleneck: {plan.bottleneck}")
    lines += [f"warning: {warning}" for warning in plan.warnings]
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


def render_clusters(suggestions: Sequence[Suggestion], devices: int) -> str:
    """Engines and placements that fit."""
    if not suggestions:
        return f"nothing fits on {_count(devices, 'device')}; use more of them, or shorter answers"
    rows = [("placement", "actor", "recompute", "engines", "step s", "async step s", "overrides")]
    shown, ahead = list(suggestions[:MOST_SUGGESTIONS]), fastest_asynchronous(suggestions)
    if ahead is not None and ahead not in shown:
        shown.append(ahead)
    for each in shown:
        config, plan = each.plan.config, each.plan
        mark = "  (fastest)" * (each is suggestions[0]) + "  (fastest asynchronous)" * (each is ahead)
        rows.append(
            (
                config.cluster.placement,
                config.actor.layout,
                config.actor.recompute,
                f"{config.rollout.engines} of tp {config.rollout.tp}",
                f"{plan.seconds:.0f}",
                f"{max(plan.asynchronous):.0f}" if plan.asynchronous else "",
                (" ".join(each.changes) or "as it is") + mark,
            )
        )
    return "\n".join(
        [f"engines and placement on {_count(devices, 'device')}, the shortest step first:", *_table(rows, "<<<<>><")]
    )


def plain(value: float, digits: int = 4) -> str:
    """So many digits that count, or more before the point; thousands apart, and never as a power of ten."""
    decimals = max(0, digits - 1 - floor(log10(abs(value)))) if value else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def _count(number: int, what: str) -> str:
    """1 step, 2 steps, 3 microbatches."""
    several = "es" if what.endswith("ch") else "s"
    return f"{number:,} {what}{several * (number != 1)}"


def _every(steps: int) -> str:
    return "every step" if steps == 1 else f"every {steps} steps"


def _head(plan: Plan) -> list[str]:
    config, work, actor = plan.config, plan.workload, plan.config.actor
    elements = sum(rank.stage_elements for rank in plan.ranks) / 1e9
    split = "" if config.is_colocated else f" + {config.rollout.engines * config.rollout.tp} of engines"
    return [
        f"{config.model.path}: {_count(plan.hf.num_hidden_layers, 'layer')}, {elements:.2f} B parameters with padding "
        f"| {plan.num_devices} x {plan.machine.name}, {config.cluster.placement}",
        f"actor: {_count(actor.world_size, 'rank')} ({actor.layout}), {actor.precision}, recompute {actor.recompute}"
        f"{split} | {_count(config.rollout.engines, 'engine')} of tp {config.rollout.tp}, {plan.memory.places} answers "
        f"each at a time (KV cache of {plan.engine.kv_tokens:,.0f} tokens)",
        f"a step: {work.answers:,.0f} answers sampled in {work.rounds.mean:.2f} rounds, {work.trained:,.0f} trained on "
        f"(mixed share {work.mixed_share:g}), {work.prompt_tokens:,.0f} + {work.answer_tokens:,.0f} tokens "
        f"in the mean, {_count(work.updates, 'update')} of {_count(work.microbatches, 'microbatch')} a rank",
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


def _around(plan: Plan) -> list[str]:
    """What a run takes beside its ordinary steps, and altogether."""
    lines = [
        f"tail: in the last {plan.round.tail_s:.0f} of a round's {plan.round.seconds:.0f} s engines have fewer answers "
        "than places"
    ]
    config = plan.config
    if config.rollout.tail != "wait":
        setting = f'rollout.tail = "{config.rollout.tail}"'
        lines[0] += f"; a step with {setting} does not wait for all of them, and is shorter"
    if (evaluation := plan.evaluation) is not None:
        every = _every(config.train.evaluate_every) if config.train.evaluate_every else "at both ends"
        lines.append(
            f"evaluation {every}: {_count(evaluation.answers, 'answer')} to {_count(evaluation.prompts, 'prompt')}; "
            f"beside a step {evaluation.beside_s:.0f} s more, alone {evaluation.alone_s:.0f} s"
        )
    if (saving := plan.saving) is not None:
        lines.append(
            f"checkpoint {_every(config.checkpoint.every)}: {plain(saving.num_bytes / 1e9)} GB, copied in "
            f"{saving.copy_s:.1f} s, on the disk {saving.write_s:.0f} s later"
        )
    if (start := plan.start) is not None:
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in start.parts.items() if seconds >= 0.5)
        lines.append(
            f"start: {start.seconds:.0f} s ({parts}); {start.read_bytes / 1e9:,.0f} GB read by all nodes together"
        )
    for name, run in (("run", plan.whole_run), ("async run", plan.asynchronous_run)):
        if run is not None:
            scale, unit = (3600, "h") if run.hours >= 1 else (60, "min")
            parts = ", ".join(f"{part} {seconds / scale:.1f}" for part, seconds in run.parts.items())
            devices = "core" if config.cluster.device == "cpu" else "GPU"
            taken = f"{3600 * run.hours / scale:,.1f} {unit}, {plain(run.device_hours)} {devices}-hours"
            lines.append(f"{name} of {_count(run.steps, 'step')}: {taken} ({parts})")
    return lines


def _table(rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, alignment, widths, strict=True)).rstrip()
        for row in rows
    ]
