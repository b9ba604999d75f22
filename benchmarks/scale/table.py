"""What sizes have spent, as tables: a step's stages beside the planner's seconds, and all sizes side by side."""

from typing import Any

PLANNED = {"rollout": "rollout", "verdict": "verdict", "score": "log-prob", "train": "train", "sync": "sync"}
"""Stage of a run -> the planner's."""
HIDDEN = ("rollout", "verdict", "evaluate")
"""Beside engines that are at work: the step waits for the driver there only if it can't keep up."""
COLUMNS = (
    "GPUs",
    "planned step s",
    "simulated",
    "of its ideal",
    "others wait, CPU s",
    "wall s",
    "share",
    "beside engines, CPU s",
    "messages",
    "stored MB",
    "object store, peak MB",
    "driver, peak MB",
    "places reserved s",
    "build calls s",
)
STAGES = ("rollout", "verdict", "pack", "score", "train", "checkpoint", "sync", "between", "evaluate")


def render(results: list[dict[str, Any]], *, markdown: bool) -> str:
    """A table a size, and one of all."""
    tables = [_one(result) for result in results] + [_all(results)]
    return "\n\n".join(_as_markdown(rows) if markdown else _as_text(rows) for rows in tables)


def last_step(result: dict[str, Any]) -> dict[str, Any]:
    """The stages of the last step: the first knows no share of mixed groups yet, and samples twice."""
    return result["spent"][max(result["spent"], key=int)]


def own_s(result: dict[str, Any], key: str = "cpu_s") -> float:
    """Seconds of a step in which the cluster waits for the driver."""
    return sum(spent[key] for name, spent in last_step(result).items() if name not in (*HIDDEN, "end"))


def planned_step_s(result: dict[str, Any]) -> float:
    """The planner's."""
    return sum(result["planned_s"].values())


def simulated_step_s(result: dict[str, Any]) -> float:
    """Rollouts as the engines' clock has them, the actor's stages as planned, and what all wait for the driver."""
    planned = sum(s for name, s in result["planned_s"].items() if name != "rollout")
    return last_step(result)["rollout"]["simulated_s"] + planned + own_s(result)


def ideal_step_s(result: dict[str, Any]) -> float:
    """Without a tail, a margin, a second round, and without a driver."""
    return planned_step_s(result) - result["planned_s"]["rollout"] + result["ideal_rollout_s"]


def messages_of(spent: dict[str, Any]) -> int:
    """To ranks and engines."""
    return sum(spent["messages"].values())


def _one(result: dict[str, Any]) -> list[list[str]]:
    stages = last_step(result)
    rows = [
        [f"{result['gpus']} GPUs, {result['engines']} engines", "planned s", "simulated s", "driver CPU s", "wall s",
         "messages", "stored MB"]
    ]  # fmt: skip
    for name in STAGES:
        if name not in stages:
            continue
        spent = stages[name]
        planned = result["planned_s"].get(PLANNED.get(name, ""))
        rows.append(
            [
                name,
                "" if planned is None else f"{planned:.1f}",
                f"{spent['simulated_s']:.1f}" if spent["simulated_s"] > 1 else "",
                f"{spent['cpu_s']:.2f}",
                f"{spent['wall_s']:.2f}",
                f"{messages_of(spent):,}",
                f"{spent['stored_bytes'] / 1e6:,.0f}",
            ]
        )
    return rows


def _all(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [list(COLUMNS)]
    for result in results:
        stages = last_step(result)
        own, planned = own_s(result), planned_step_s(result)
        beside = sum(stages[name]["cpu_s"] for name in ("rollout", "verdict") if name in stages)
        step = [spent for name, spent in stages.items() if name not in ("evaluate", "end")]
        rows.append(
            [
                f"{result['gpus']:,}",
                f"{planned:.0f}",
                f"{simulated_step_s(result):.0f}",
                f"{simulated_step_s(result) / ideal_step_s(result):.2f}",
                f"{own:.1f}",
                f"{own_s(result, 'wall_s'):.1f}",
                f"{own / planned:.1%}",
                f"{beside:.1f}",
                f"{sum(map(messages_of, step)):,}",
                f"{sum(spent['stored_bytes'] for spent in step) / 1e6:,.0f}",
                f"{result['store_bytes'] / 1e6:,.0f}",
                f"{result['driver_bytes'] / 1e6:,.0f}",
                f"{result['reserve_s']:.1f}",
                f"{result['build_s']:.2f}",
            ]
        )
    return rows


def _as_markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _as_text(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
