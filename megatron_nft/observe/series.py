"""Records -> the columns that a page embeds and draws: rounded, and thinned so that 10,000 steps stay a page.

Pure functions, called by `observe.html` and `observe.compare`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from megatron_nft.observe.metrics import METRICS, RATE_BINS
from megatron_nft.types import StepReport

SIGNIFICANT_DIGITS = 6  # of an embedded value: more can't be seen
MAX_POINTS = 800  # of a curve: beyond, neighbouring steps are taken together; a chart has 1,200 pixels at most
MAX_RATE_POINTS = 150  # of the picture of correct rates, where a column needs a few pixels


def with_axes(records: Sequence[StepReport]) -> list[StepReport]:
    """The records with what a chart may be drawn over besides steps and updates: hours since the first record, and
    tokens trained on, as axis/hours and axis/tokens."""
    begin = _seconds(records[0].time) if records else None
    tokens, found = 0.0, []
    for record in records:
        axes: dict[str, float] = {}
        if begin is not None and (now := _seconds(record.time)) is not None:
            axes["axis/hours"] = (now - begin) / 3600
        tokens += record.metrics.get("actor/tokens", 0.0) if record.kind == "step" else 0.0
        if tokens or record.kind == "evaluation":
            axes["axis/tokens"] = tokens
        found.append(replace(record, metrics=record.metrics | axes))
    return found


def _seconds(time: str) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return None


def columns(records: Sequence[StepReport]) -> dict[str, Any]:
    """Records turned into columns, so that a name is embedded once and not once a step.

    Of more than MAX_POINTS records, neighbours are taken together, under the last one's step: "max" and "min" metrics
    by their extreme, "last" ones by the last, all others by their mean.
    """
    parts = _parts(records, MAX_POINTS)
    names = dict.fromkeys(name for record in records for name in record.metrics)
    return {
        "step": [part[-1].step for part in parts],
        "metrics": {name: [_together(name, part) for part in parts] for name in names},
        "together": len(parts[0]) if parts else 1,
    }


def correct_rates(steps: Sequence[StepReport]) -> dict[str, Any]:
    """Sampled groups by their correct rate: for each of at most MAX_RATE_POINTS parts of the run, its first and last
    step and its groups in each of the RATE_BINS bins."""
    parts = _parts([step for step in steps if len(step.groups_by_correct_rate) == RATE_BINS], MAX_RATE_POINTS)
    return {
        "step": [part[0].step for part in parts],
        "last": [part[-1].step for part in parts],
        "counts": [[sum(r.groups_by_correct_rate[i] for r in part) for i in range(RATE_BINS)] for part in parts],
    }


def _parts(records: Sequence[StepReport], most: int) -> list[Sequence[StepReport]]:
    size = math.ceil(len(records) / most) or 1
    return [records[i : i + size] for i in range(0, len(records), size)]


def _together(name: str, part: Sequence[StepReport]) -> float | None:
    values = [r.metrics[name] for r in part if name in r.metrics and math.isfinite(r.metrics[name])]
    if not values:
        return None
    reduction = METRICS[name].reduction if name in METRICS else "last"  # a record of another version
    if len(values) == 1 or reduction == "last":
        value = values[-1]
    elif reduction in ("max", "min"):
        value = max(values) if reduction == "max" else min(values)
    else:
        value = sum(values) / len(values)
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value
