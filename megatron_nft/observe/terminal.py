"""What a run says on the terminal: plain lines, step lines, evaluation lines, the closing table, progress of a stage.

Metrics come in, text goes out; `observe.report` and `run.folder` call it. A segment without its metrics is left out. On
a terminal no line is longer than it is wide; elsewhere, in a log, every line begins with the time of day.
"""

import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TextIO

from megatron_nft.observe.step_line import StepView, duration, log_line, table_head, table_row
from megatron_nft.types import StepReport

CLOSING = (
    ("eval/average", "mean of benchmarks"),
    ("eval/greedy_accuracy", "greedy accuracy"),
    ("eval/avg_at_k", "sampled accuracy"),
)
TTY_REDRAW_S = 0.2  # faster flickers
LOG_LINE_S = 30.0  # without a terminal a long stage says this often that it is alive
HEAD_EVERY = 20
"""Rows of steps under one head."""
UNKNOWN_WIDTH = 80


class Console:
    """Where a run's lines go."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._is_terminal = stream, stream.isatty()
        self._rows, self._width_of_head = 0, 0
        self._progress: Progress | None = None

    @property
    def width(self) -> int | None:
        """Columns of the terminal, as it is now; None: it is none."""
        return terminal_width(self._stream) if self._is_terminal else None

    def say(self, line: str) -> None:
        """A plain line, or several."""
        if self.width is None:
            self.print(f"{datetime.now():%H:%M:%S} {line}")
        else:
            self.print("\n".join(_wrapped(each, self.width) for each in line.split("\n")))

    def print(self, text: str) -> None:
        """As it is."""
        if self._progress is not None:
            self._progress.clear()
        print(text, file=self._stream, flush=True)

    def step(self, view: StepView) -> None:
        """A step's line: of a table on a terminal, with a head at times."""
        if (width := self.width) is None:
            return self.say(log_line(view))
        if self._rows % HEAD_EVERY == 0 or width != self._width_of_head:
            self.print(table_head(view, width))
            self._rows, self._width_of_head = 0, width
        self._rows += 1
        self.print(table_row(view, width))

    def evaluation(self, step: int, metrics: Mapping[str, float], first: Mapping[str, float]) -> None:
        """An evaluation's line; the last segments go where there is no room for them."""
        parts = evaluation_parts(step, metrics, first)
        while self.width is not None and len(parts) > 2 and len(" | ".join(parts)) > self.width:
            parts.pop()
        self.say(" | ".join(parts))

    def begin(self, label: str, total: int | None, unit: str) -> "tuple[Progress, Progress | None]":
        """The progress of a stage that begins, and of the one around it, for `end`."""
        outer, self._progress = self._progress, Progress(self._stream, label, total, unit)
        return self._progress, outer

    def end(self, progress: "Progress", outer: "Progress | None") -> None:
        """The stage is over."""
        progress.clear()
        self._progress = outer


def terminal_width(stream: TextIO) -> int:
    """In columns."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or UNKNOWN_WIDTH
    except (OSError, ValueError):
        return UNKNOWN_WIDTH


def _wrapped(line: str, width: int) -> str:
    """Broken between words only: a path is longer than a line rather than cut."""
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    return "\n".join(
        textwrap.wrap(
            line.strip(), width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False,
            break_on_hyphens=False,
        )
    )  # fmt: skip


def evaluation_parts(step: int, metrics: Mapping[str, float], first: Mapping[str, float]) -> list[str]:
    """What an evaluation says; `first` is the run's first one (or empty), the base of the change in brackets."""
    parts = [f"evaluation at step {step}"]
    k = f"avg@{metrics['eval/k']:.0f}" if "eval/k" in metrics else "avg@k"
    for name, label in (("eval/average", "average"), ("eval/greedy_accuracy", "greedy"), ("eval/avg_at_k", k)):
        if name in metrics:
            change = f" ({metrics[name] - first[name]:+.3f})" if name in first else ""
            parts.append(f"{label} {metrics[name]:.3f}{change}")
    if "eval/truncated_fraction" in metrics:
        parts.append(f"truncated {metrics['eval/truncated_fraction']:.3f}")
    if "eval/prompts" in metrics:
        too_long = f", {metrics['eval/prompts_too_long']:.0f} too long" if metrics.get("eval/prompts_too_long") else ""
        parts.append(f"{metrics['eval/prompts']:.0f} prompts{too_long}")
    if "time/evaluate_s" in metrics:
        parts.append(f"{metrics['time/evaluate_s']:.1f}s")
    return parts


def latest_accuracy(records: Sequence[StepReport]) -> float | None:
    """Of the last evaluation, the first kind of CLOSING that it has."""
    for record in reversed(records):
        if record.kind == "evaluation":
            return next((record.metrics[name] for name, _ in CLOSING if name in record.metrics), None)
    return None


def accuracy_rows(records: Sequence[StepReport]) -> dict[str, str]:
    """Label -> a run's accuracy, from its first evaluation to its last; of each kind that it has measured."""
    rows = {}
    for name, label in CLOSING:
        values = [r.metrics[name] for r in records if r.kind == "evaluation" and name in r.metrics]
        if len(values) > 1:
            rows[label] = f"{values[0]:.3f} -> {values[-1]:.3f} ({100 * (values[-1] - values[0]):+.1f} points)"
        elif values:
            rows[label] = f"{values[0]:.3f} (one evaluation)"
    return rows


def closing_table(rows: Mapping[str, str], width: int | None = None) -> str:
    """Label and value a line, aligned, between rules.

    Args:
        width: of the terminal, beyond which values are broken between words.
    """
    left = max(len(label) for label in rows)
    lines = []
    for label, value in rows.items():
        room = max((width or 10_000) - left - 4, 20)
        first, *others = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"  {label:<{left}}  {first}", *(" " * (left + 4) + other for other in others)]
    rule = "-" * min(max(len(line) for line in lines), width or 100)
    return "\n".join([rule, *lines, rule])


class Progress:
    """Live progress of one stage: redrawn in place on a terminal, a rare line elsewhere."""

    def __init__(self, stream: TextIO, label: str, total: int | None, unit: str):
        self._stream, self._label, self._total, self._unit = stream, label, total, unit
        self._live = stream.isatty()
        self._start = time.perf_counter()
        self._last = self._start
        self._drawn = False

    def update(self, done: int, total: int | None = None) -> None:
        """Says how many of the total (a new one, if given) are done. Cheap enough to call for every answer."""
        self._total = self._total if total is None else total
        now = time.perf_counter()
        if now - self._last < (TTY_REDRAW_S if self._live else LOG_LINE_S):
            return
        self._last = now
        of_total = "" if self._total is None else f"/{self._total}"
        text = f"  {self._label} {done}{of_total} {self._unit}".rstrip() + f", {duration(now - self._start)}"
        if self._live:
            self._stream.write(f"\r\x1b[K{text[: terminal_width(self._stream) - 1]}")
        else:
            self._stream.write(f"{datetime.now():%H:%M:%S} {text}\n")
        self._stream.flush()
        self._drawn = self._live

    def clear(self) -> None:
        """Takes the live line off the terminal, so that a whole line can be printed."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
