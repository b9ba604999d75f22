"""The staleness study's table (Markdown) and curves (SVG), from the cells that are there. Called by staleness.py; or

python -m benchmarks.async.staleness_page runs/staleness [--page FOLDER]
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.intervals import half_width, interval

Result = dict[str, Any]
Row = tuple[float, int, str]
"""neg_weight, staleness (0: synchronous), correction."""

COLUMNS = (
    "neg_weight", "staleness", "correction", "seeds", "end %", "curve %", "end, less synchronous",
    "curve, less synchronous", "end, less none", "measured staleness", "KL of the gap", "ESS", "cut or masked",
    "largest ratio",
)  # fmt: skip
COLOURS = {"none": "#c0392b", "cap": "#e08e0b", "band": "#2266aa", "engine": "#7d3c98", "centering": "#0b6e4f"}
ORDER = list(COLOURS)
CONTROLS = {"none": ORDER[1:], "engine": ["centering"]}
"""Correction -> those that are compared with it at the same staleness."""
WIDTH, HEIGHT, LEFT, TOP = 250, 200, 44, 30


def read_cells(out: Path) -> dict[Row, dict[int, Result]]:
    """What finished cells have left, by seed."""
    rows: dict[Row, dict[int, Result]] = {}
    for path in sorted(out.glob("*/cell.json")):
        cell = json.loads(path.read_text())
        cell["curve"] = {int(step): 100 * value for step, value in cell["greedy_accuracy"].items()}
        rows.setdefault((cell["neg_weight"], cell["staleness"], cell["correction"]), {})[cell["seed"]] = cell
    return dict(sorted(rows.items(), key=lambda pair: (-pair[0][0], pair[0][1], ORDER.index(pair[0][2]))))


def end(cell: Result) -> float:
    return cell["curve"][max(cell["curve"])]


def whole(cell: Result) -> float:
    return statistics.mean(cell["curve"].values())


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def difference(cells: dict[int, Result], others: dict[int, Result], of: Any) -> str:
    """Mean difference to runs of the same seeds, and its 95% interval."""
    values = [of(cells[seed]) - of(others[seed]) for seed in cells if seed in others]
    return interval(values)


Pair = tuple[float, int]
"""neg_weight, seed."""


def pairs(rows: dict[Row, dict[int, Result]], staleness: int, correction: str, of: Any) -> dict[Pair, float]:
    """Of both weights' runs."""
    return {
        (weight, seed): of(cell)
        for (weight, k, name), cells in rows.items()
        if (k, name) == (staleness, correction)
        for seed, cell in cells.items()
    }


def both_weights(rows: dict[Row, dict[int, Result]]) -> str:
    """Differences of pairs with the same weight and seed; bold: the interval has no 0 in it."""
    columns = [f"{of}, less {other}" for other in ("synchronous", *CONTROLS) for of in ("end", "curve")]
    lines = [f"| staleness | correction | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    kinds = {(staleness, name) for _, staleness, name in rows if staleness}
    for staleness, name in sorted(kinds, key=lambda kind: (kind[0], ORDER.index(kind[1]))):
        others = [(0, "none"), *[(staleness, other) if name in known else None for other, known in CONTROLS.items()]]
        cells = [
            less(pairs(rows, staleness, name, of), pairs(rows, *other, of)) if other else ""
            for other in others
            for of in (end, whole)
        ]
        lines.append(f"| {staleness} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def less(mine: dict[Pair, float], theirs: dict[Pair, float]) -> str:
    values = [mine[pair] - theirs[pair] for pair in mine if pair in theirs]
    half = half_width(values)
    if half is None:
        return ""
    return interval(values) if abs(statistics.mean(values)) <= half else f"**{interval(values)}**"


def mean_of(cells: dict[int, Result], *names: str) -> float | None:
    """Of the first metric that the cells have."""
    for name in names:
        if values := [c["means"][name] for c in cells.values() if name in c["means"]]:
            return statistics.mean(values)
    return None


def table(rows: dict[Row, dict[int, Result]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    for (weight, staleness, correction), cells in rows.items():
        synchronous = rows.get((weight, 0, "none"), {})
        plain = rows.get((weight, staleness, "none"), {})
        measured = [
            mean_of(cells, "async/staleness_mean"),
            mean_of(cells, "rollout/gap_kl"),
            mean_of(cells, "rollout/gap_ess_tokens"),
            mean_of(cells, "nft/masked_fraction", "nft/truncated_fraction"),
            mean_of(cells, "nft/ratio_max"),
        ]
        formats = ("{:.2f}", "{:.1e}", "{:.3f}", "{:.2%}", "{:.2f}")
        cut = ["" if x is None else form.format(x) for x, form in zip(measured, formats, strict=True)]
        cut[3] = cut[3] if correction in ("cap", "band") else ""
        lines.append(
            f"| {weight:g} | {staleness or 'synchronous'} | {correction if staleness else ''} | {len(cells)} | "
            f"{spread([end(c) for c in cells.values()])} | {spread([whole(c) for c in cells.values()])} | "
            + " | ".join(
                [
                    difference(cells, synchronous, end) if staleness else "",
                    difference(cells, synchronous, whole) if staleness else "",
                    difference(cells, plain, end) if correction != "none" else "",
                    *cut,
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def svg(rows: dict[Row, dict[int, Result]]) -> str:
    """A panel for each weight and staleness: greedy accuracy in percent, mean over seeds; synchronous in grey."""
    panels, places = [], sorted({(-w, k) for w, k, _ in rows if k})
    for number, (minus, staleness) in enumerate(places):
        left, top = (number % 3) * (WIDTH + LEFT), (number // 3) * (HEIGHT + TOP + 40)
        mine = {name: cells for (w, k, name), cells in rows.items() if (w, k) == (-minus, staleness)}
        mine = {"synchronous": rows.get((-minus, 0, "none"), {}), **mine}
        panels.append(panel(mine, left, top, f"neg_weight {-minus:g}, staleness {staleness}"))
    width, height = 3 * (WIDTH + LEFT) + 20, 2 * (HEIGHT + TOP + 40) + 40
    legend = "".join(
        f'<rect x="{LEFT + 120 * i}" y="{height - 22}" width="14" height="4" fill="{colour}"/>'
        f'<text x="{LEFT + 20 + 120 * i}" y="{height - 15}">{name}</text>'
        for i, (name, colour) in enumerate({"synchronous": "#777777", **COLOURS}.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(panels)
        + f"\n{legend}\n</svg>\n"
    )


def panel(by_name: dict[str, dict[int, Result]], left: float, top: float, title: str) -> str:
    steps = sorted({s for cells in by_name.values() for c in cells.values() for s in c["curve"]}) or [0, 1]

    def x(step: float) -> float:
        return left + LEFT + (WIDTH - 20) * step / max(steps)

    def y(percent: float) -> float:
        return top + TOP + HEIGHT * (1 - percent / 100)

    parts = [f'<text x="{x(0)}" y="{top + 18}" font-weight="bold">{title}</text>']
    for percent in range(0, 101, 20):
        parts.append(f'<line x1="{x(0)}" x2="{x(max(steps))}" y1="{y(percent)}" y2="{y(percent)}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(0) - 6}" y="{y(percent) + 4}" text-anchor="end">{percent}</text>')
    parts += [f'<text x="{x(s):.1f}" y="{y(0) + 16:.1f}" text-anchor="middle">{s}</text>' for s in steps]
    for name, cells in by_name.items():
        if cells:
            means = [statistics.mean(c["curve"][s] for c in cells.values()) for s in steps]
            points = " ".join(f"{x(s):.1f},{y(mean):.1f}" for s, mean in zip(steps, means, strict=True))
            colour = COLOURS.get(name, "#777777")
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return "\n".join(parts)


def write_page(out: Path, page: Path) -> None:
    """Writes staleness_table.md and staleness.svg into `page`."""
    rows = read_cells(out)
    page.mkdir(parents=True, exist_ok=True)
    text = f"Over both weights, in points:\n\n{both_weights(rows)}\n\n{table(rows)}"
    (page / "staleness_table.md").write_text(text + "\n")
    (page / "staleness.svg").write_text(svg(rows))
    print(text + f"\nwritten: {page / 'staleness_table.md'}, {page / 'staleness.svg'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--page", type=Path, help="folder for the table and the curves (default: the runs')")
    arguments = parser.parse_args()
    write_page(arguments.out, arguments.page or arguments.out)
