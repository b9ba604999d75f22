"""What a run says on the terminal: the step line, the evaluation line, the closing table, live progress of a stage.

Metrics come in, text goes out; `observe.report` and `run.folder` call it. A segment without its metrics is left out.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from megatron_nft.config import TrainConfig
from megatron_nft.observe.metrics import STAGES
from megatron_nft.types import StepReport

CLOSING = (
    ("eval/average", "mean of benchmarks"),
    ("eval/greedy_accuracy", "greedy accuracy"),
    ("eval/avg_at_k", "sampled accuracy"),
)
TTY_REDRAW_S = 0.2  # faster flickers
LOG_LINE_S = 30.0  # without a terminal a long stage says this often that it is alive


def step_line(step: int, train: TrainConfig, metrics: Mapping[str, float], eta_s: float) -> str:
    """One line a step: `step 12/40 | update 192/640 | 7.9s | loss 0.0123 | correct 0.41 | ... | ETA 3m12s`."""
    parts = [
        f"step {step}/{train.steps}",
        f"update {metrics['train/updates']:.0f}/{train.steps * train.updates_per_step}",
        f"{metrics['time/step_s']:.1f}s",
    ]
    if "nft/loss" in metrics:
        parts.append(f"loss {_decimal(metrics['nft/loss'])}")
    if "nft/correct_rate" in metrics:
        parts.append(f"correct {metrics['nft/correct_rate']:.2f}")
    if "verdict/right" in metrics:
        other = sum(metrics[f"verdict/{kind}"] for kind in ("unparsable", "timeout", "error"))
        counts = (metrics["verdict/right"], metrics["verdict/wrong"], other)
        parts.append("right/wrong/other " + "/".join(f"{count:.0f}" for count in counts))
    if "rollout/groups_mixed" in metrics:
        groups = sum(metrics[f"rollout/groups_{kind}"] for kind in ("mixed", "all_right", "all_wrong"))
        parts.append(f"mixed {metrics['rollout/groups_mixed']:.0f}/{groups:.0f}")
    if "rollout/logprob_gap_mean" in metrics:
        parts.append(f"gap {metrics['rollout/logprob_gap_mean']:.1e}")
    if "actor/grad_norm" in metrics:
        parts.append(f"grad {metrics['actor/grad_norm']:.2f}")
    if "actor/learning_rate" in metrics:
        parts.append(f"lr {metrics['actor/learning_rate']:.1e}")
    times = [f"{stage} {metrics[f'time/{stage}_s']:.1f}s" for stage in STAGES if f"time/{stage}_s" in metrics]
    if times:
        parts.append(" ".join(times))
    parts.append(f"ETA {duration(eta_s)}")
    return " | ".join(parts)


def evaluation_line(step: int, metrics: Mapping[str, float], first: Mapping[str, float]) -> str:
    """One line an evaluation; `first` is the run's first one (or empty), the base of the change in brackets."""
    parts = [f"evaluation at step {step}"]
    k = f"avg@{metrics['eval/k']:.0f}" if "eval/k" in metrics else "avg@k"
    for name, label in (("eval/average", "average"), ("eval/greedy_accuracy", "greedy"), ("eval/avg_at_k", k)):
        if name in metrics:
            change = f" ({metrics[name] - first[name]:+.3f})" if name in first else ""
            parts.append(f"{label} {metrics[name]:.3f}{change}")
    if "eval/truncated_fraction" in metrics:
        parts.append(f"truncated {metrics['eval/truncated_fraction']:.3f}")
    if "eval/prompts" in metrics:
        parts.append(f"{metrics['eval/prompts']:.0f} prompts")
    if "time/evaluate_s" in metrics:
        parts.append(f"{metrics['time/evaluate_s']:.1f}s")
    return " | ".join(parts)


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


def closing_table(rows: Mapping[str, str]) -> str:
    """Label and value a line, aligned, between rules."""
    width = max(len(label) for label in rows)
    lines = [f"  {label:<{width}}  {value}" for label, value in rows.items()]
    rule = "-" * min(max(len(line) for line in lines), 100)
    return "\n".join([rule, *lines, rule])


def duration(seconds: float) -> str:
    """42s, 3m12s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _decimal(value: float) -> str:
    """Four decimals, or an exponent where those would show only zeros."""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


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
        self._stream.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        self._stream.flush()
        self._drawn = self._live

    def clear(self) -> None:
        """Takes the live line off the terminal, so that a whole line can be printed."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
