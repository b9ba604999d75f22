"""Scores of benchmarks -> the paper's table with the published rows beside, and one line a benchmark."""

from collections.abc import Sequence

from megatron_nft.evaluation.scores import BenchmarkScores, average
from megatron_nft.observe import published
from megatron_nft.observe.published import COLUMNS, SERIES_COLUMNS

Row = list[str]


def paper_rows(model: str, benchmarks: Sequence[BenchmarkScores]) -> list[Row]:
    """Head, this model's row, its intervals, the published rows; accuracies in percent. Empty if no benchmark is one of
    the paper's."""
    if not any(b.column in COLUMNS for b in benchmarks):
        return []
    return _beside(model, benchmarks, tuple(COLUMNS), published.published_rows())


def series_rows(model: str, benchmarks: Sequence[BenchmarkScores]) -> list[Row]:
    """The same beside other models of the Qwen series; empty if no benchmark is in that comparison."""
    if not any(b.column in SERIES_COLUMNS for b in benchmarks):
        return []
    return _beside(model, benchmarks, SERIES_COLUMNS, published.series_rows())


def _beside(model: str, benchmarks: Sequence[BenchmarkScores], columns: Sequence[str], others: list[Row]) -> list[Row]:
    # A column may come twice, in two files: the first is shown here, both are in detail_rows.
    ours = {b.column: b.metrics for b in reversed(benchmarks)}
    mean = average(benchmarks, columns)
    row, ends = [model], ["  95% interval"]
    for column in columns:
        metrics = ours.get(column)
        row.append(_percent(metrics["eval/avg_at_k"]) if metrics else "-")
        ends.append(_span(metrics["eval/avg_at_k_low"], metrics["eval/avg_at_k_high"]) if metrics else "")
    row.append(_percent(mean[0]) if mean else "-")
    ends.append(_span(*mean[1:]) if mean else "")
    return [["accuracy, %", *columns, "average"], row, ends, *others]


def detail_rows(benchmarks: Sequence[BenchmarkScores]) -> list[Row]:
    """One line a benchmark."""
    head = [
        "benchmark",
        "prompts",
        "k",
        "avg@k",
        "95% interval",
        "pass@k",
        "maj@k",
        "tokens",
        "truncated",
        "no verdict",
    ]
    rows = [head]
    for benchmark in benchmarks:
        m = benchmark.metrics
        undecided = m["verdict/unparsable"] + m["verdict/timeout"] + m["verdict/error"]
        row = [benchmark.name, f"{m['eval/prompts']:.0f}", f"{m['eval/k']:.0f}", _percent(m["eval/avg_at_k"])]
        row += [_span(m["eval/avg_at_k_low"], m["eval/avg_at_k_high"])]
        row += [_percent(m["eval/pass_at_k"]), _percent(m["eval/maj_at_k"]), f"{m['eval/answer_tokens_mean']:.0f}"]
        row += [_percent(m["eval/truncated_fraction"]) + "%", f"{undecided:.0f}"]
        rows.append(row)
    return rows


def notes(benchmarks: Sequence[BenchmarkScores]) -> list[str]:
    """What the tables' numbers leave out."""
    lines = [
        "no verdict: answers without a readable final answer, or whose grading failed or took too long; all are wrong"
    ]
    missing = [column for column in COLUMNS if column not in {b.column for b in benchmarks}]
    if 0 < len(missing) < len(COLUMNS):
        lines.append(f"no average: {', '.join(missing)} not evaluated")
    for benchmark in benchmarks:
        theirs = published.GRADED_BY.get(benchmark.column or "", benchmark.mode)
        if benchmark.mode not in ("", theirs):
            lines.append(
                f"{benchmark.name}: graded by {benchmark.mode!r}, the published {benchmark.column} by {theirs!r}; "
                "verdict.modes grades a data source as theirs"
            )
        if benchmark.metrics["eval/avg_at_k_low"] == benchmark.metrics["eval/avg_at_k_high"]:
            lines.append(f"{benchmark.name}: all prompts have the same accuracy; a bootstrap can't say how sure it is")
        if too_long := benchmark.metrics["eval/prompts_too_long"]:
            lines.append(f"{benchmark.name}: {too_long:.0f} prompts beyond data.max_prompt_tokens count as wrong")
    return lines


def text_tables(model: str, benchmarks: Sequence[BenchmarkScores]) -> str:
    """The tables and the notes, for a terminal."""
    tables = [paper_rows(model, benchmarks), series_rows(model, benchmarks), detail_rows(benchmarks)]
    return "\n\n".join([*(_aligned(rows) for rows in tables if rows), "\n".join(notes(benchmarks))])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _aligned(rows: Sequence[Row]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])])
