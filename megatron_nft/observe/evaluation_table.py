"""A run's evaluations as tables: a line a benchmark, first and last, and the paper's table where a benchmark is in it.

Evaluation records come in, rows of text go out. Called by `observe.html`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_nft.observe import published
from megatron_nft.observe.published import COLUMNS, SERIES_COLUMNS, column_of
from megatron_nft.types import StepReport

Rows = list[list[str]]
Scores = Mapping[str, Mapping[str, float]]  # benchmark -> its metrics
ACCURACIES = ("eval/avg_at_k", "eval/greedy_accuracy")
"""What stands in the paper's table: the first of these that was measured of every benchmark."""


def benchmark_rows(evaluations: Sequence[StepReport]) -> Rows:
    """A head, then a line a benchmark of the last evaluation, with the first one's accuracies before."""
    evaluations = [e for e in evaluations if e.benchmarks]
    if not evaluations:
        return []
    first, last = evaluations[0].benchmarks, evaluations[-1].benchmarks
    kinds = [(name, label) for name, label in zip(ACCURACIES, ("avg@k", "greedy"), strict=True) if _has(last, name)]
    head = ["benchmark", "prompts", "k"] if _has(last, "eval/k") else ["benchmark", "prompts"]
    for _, label in kinds:
        head += [f"{label}, first", "last", "95% interval"]
    rows = [[*head, "truncated"]]
    for benchmark, its in last.items():
        row = [benchmark, _count(its, "eval/prompts")] + ([_count(its, "eval/k")] if "k" in head else [])
        for name, _ in kinds:
            row += [_percent(first.get(benchmark, {}).get(name)), _percent(its.get(name)), _interval(its, name)]
        rows.append([*row, _percent(its.get("eval/truncated_fraction")) + "%"])
    return rows


def paper_rows(evaluations: Sequence[StepReport]) -> Rows:
    """The paper's table with the run's first and last evaluation above it; empty if no benchmark is in the table."""
    return _beside(evaluations, tuple(COLUMNS), published.published_rows())


def series_rows(evaluations: Sequence[StepReport]) -> Rows:
    """The same of the authors' comparison with other models of the Qwen series."""
    return _beside(evaluations, SERIES_COLUMNS, published.series_rows())


def curve_ends(evaluations: Sequence[StepReport]) -> dict[str, Any]:
    """Where the published curves of eval/average begin and end, if the run evaluates on all that they are of."""
    names = dict.fromkeys(name for e in evaluations for name in e.benchmarks)
    if sorted(filter(None, map(column_of, names))) != sorted(COLUMNS) or len(names) != len(COLUMNS):
        return {}
    return {"updates": published.UPDATES, "ends": published.CURVES}


def _beside(evaluations: Sequence[StepReport], columns: Sequence[str], others: Rows) -> Rows:
    evaluations = [e for e in evaluations if any(column_of(name) in columns for name in e.benchmarks)]
    if not evaluations:
        return []
    rows = [["accuracy, %", *columns, "average"]]
    ends = [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else evaluations
    for evaluation in ends:
        ours = {column_of(name): its for name, its in reversed(evaluation.benchmarks.items())}
        shown = [ours[column] for column in columns if column in ours]
        kind = next((name for name in ACCURACIES if all(name in its for its in shown)), ACCURACIES[-1])
        values = [ours[column].get(kind) if column in ours else None for column in columns]
        mean = None if None in values else sum(values) / len(values)
        label = f"this run, step {evaluation.step}" + ("" if kind == ACCURACIES[0] else " (greedy)")
        rows.append([label, *map(_percent, values), _percent(mean)])
        rows.append(["95% interval", *(_interval(ours.get(column, {}), kind) for column in columns), ""])
    return rows + others


def _has(benchmarks: Scores, name: str) -> bool:
    return any(name in its for its in benchmarks.values())


def _count(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.0f}" if name in metrics else "-"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _interval(metrics: Mapping[str, float], name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f"{100 * low:.1f}-{100 * high:.1f}"
