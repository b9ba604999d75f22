"""The study's table (Markdown) and curves (SVG), from the cells that are there. Called by run.py."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.algorithms.cells import BASE, LEARNING_RATES, METHODS, all_cells
from benchmarks.intervals import interval

Curves = dict[tuple[str, int], dict[int, dict[int, float]]]
"""(method, updates) -> seed -> step -> held-out greedy accuracy."""

Ratios = dict[tuple[str, int], list[float]]
"""(method, updates) -> largest likelihood ratio of any token, of each seed."""

COLUMNS = (
    "method", "seeds", "start", "end", "mean over the curve", "end, less NFT", "curve, less NFT", "largest ratio"
)  # fmt: skip
COLOURS = ("#0b6e4f", "#58b09c", "#c0392b", "#2c5aa0", "#8e6bbf", "#e08e0b", "#555555")
WIDTH, HEIGHT, LEFT, TOP = 300, 260, 46, 34


def read_cells(out: Path, seeds: int) -> tuple[Curves, Ratios]:
    """What finished cells have left."""
    curves: Curves = {}
    ratios: Ratios = {}
    for cell in all_cells(seeds):
        path = out / cell.name / "cell.json"
        if path.exists():
            result = json.loads(path.read_text())
            by_seed = curves.setdefault((cell.method, cell.updates), {})
            by_seed[cell.seed] = {int(step): value for step, value in result["greedy_accuracy"].items()}
            ratios.setdefault((cell.method, cell.updates), []).append(result["ratio_max"])
    return curves, ratios


def write_page(out: Path, page: Path, seeds: int) -> None:
    """Writes table.md and curves.svg into `page`."""
    curves, ratios = read_cells(out, seeds)
    page.mkdir(parents=True, exist_ok=True)
    text = table(curves, ratios)
    (page / "table.md").write_text(text)
    (page / "curves.svg").write_text(svg(curves))
    print(text + f"\nwritten: {page / 'table.md'}, {page / 'curves.svg'}")


def table(curves: Curves, ratios: Ratios) -> str:
    """Accuracy at the end and over the whole curve, in percent: mean ± standard deviation over seeds, and the mean
    difference to NFT of the same seed with its 95% interval (t distribution). Largest ratio: mean over seeds."""
    lines = []
    for updates, rate in LEARNING_RATES.items():
        lines += [
            f"**{updates} update{'s' if updates > 1 else ''} per rollout batch** (learning rate {rate:g})\n",
            f"| {' | '.join(COLUMNS)} |",
            "|" + " --- |" * len(COLUMNS),
        ]
        base = curves.get((BASE, updates), {})
        for method in METHODS:
            by_seed = curves.get((method, updates), {})
            if not by_seed:
                continue
            start, end = ([100 * c[edge(c)] for c in by_seed.values()] for edge in (min, max))
            whole = [100 * np.mean(list(c.values())) for c in by_seed.values()]
            pairs = [seed for seed in by_seed if seed in base]
            ends = [100 * (by_seed[s][max(by_seed[s])] - base[s][max(base[s])]) for s in pairs]
            wholes = [100 * (np.mean(list(by_seed[s].values())) - np.mean(list(base[s].values()))) for s in pairs]
            differences = ["", ""] if method == BASE else [interval(ends), interval(wholes)]
            lines.append(
                f"| {method} | {len(by_seed)} | {np.mean(start):.1f} | {spread(end)} | {spread(whole)} | "
                + " | ".join([*differences, f"{np.mean(ratios[method, updates]):.2f}"])
                + " |"
            )
        lines.append("")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def less_nft(curves: Curves) -> Curves:
    """Every curve less that of NFT with the same seed and number of updates."""
    return {
        (method, updates): {
            seed: {step: value - curves[BASE, updates][seed][step] for step, value in curve.items()}
            for seed, curve in by_seed.items()
            if seed in curves.get((BASE, updates), {})
        }
        for (method, updates), by_seed in curves.items()
        if method != BASE
    }


def svg(curves: Curves) -> str:
    """A column for each number of updates: accuracy in percent, and below it the difference to NFT in points. Mean
    over seeds as a line, ± one standard deviation as a band."""
    differences = less_nft(curves)
    panels = []
    for column, updates in enumerate(LEARNING_RATES):
        left = column * (WIDTH + LEFT)
        title = f"{updates} update{'s' if updates > 1 else ''} per batch"
        panels.append(panel(curves, updates, left, 0, title, range(0, 101, 20)))
        panels.append(panel(differences, updates, left, HEIGHT + 90, "less NFT, same seed", range(-12, 13, 4)))
    width, height = len(LEARNING_RATES) * (WIDTH + LEFT) + 20, 2 * HEIGHT + TOP + 160
    legend = "".join(
        f'<rect x="{LEFT + 140 * i}" y="{height - 22}" width="14" height="4" fill="{colour}"/>'
        f'<text x="{LEFT + 20 + 140 * i}" y="{height - 15}">{method}</text>'
        for i, (method, colour) in enumerate(zip(METHODS, COLOURS, strict=True))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(panels)
        + f"\n{legend}\n</svg>\n"
    )


def panel(curves: Curves, updates: int, left: float, top: float, title: str, percents: range) -> str:
    """One pair of axes: `percents` are the grid lines, from the lowest to the highest."""
    steps = sorted({s for by_seed in curves.values() for curve in by_seed.values() for s in curve}) or [0, 1]
    low, high = percents[0] / 100, percents[-1] / 100

    def x(step: float) -> float:
        return left + LEFT + (WIDTH - 20) * step / max(steps)

    def y(value: float) -> float:
        return top + TOP + HEIGHT * (high - min(max(value, low), high)) / (high - low)

    parts = [
        f'<text x="{x(0)}" y="{y(high) - 14}" font-weight="bold">{title}</text>',
        f'<text x="{x(max(steps) / 2)}" y="{y(low) + 34}" text-anchor="middle">rollout step</text>',
    ]
    for percent in percents:
        at = y(percent / 100)
        parts.append(f'<line x1="{x(0)}" x2="{x(max(steps))}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(0) - 6}" y="{at + 4:.1f}" text-anchor="end">{percent}</text>')
    parts += [f'<text x="{x(s):.1f}" y="{y(low) + 16:.1f}" text-anchor="middle">{s}</text>' for s in steps]
    for method, colour in zip(METHODS, COLOURS, strict=True):
        by_seed = curves.get((method, updates), {})
        if by_seed:
            parts += line(by_seed, colour, x, y)
    return "\n".join(parts)


def line(by_seed: Mapping[int, Mapping[int, float]], colour: str, x, y) -> list[str]:
    steps = sorted(next(iter(by_seed.values())))
    values = np.array([[curve[s] for s in steps] for curve in by_seed.values()])
    mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0 * values.mean(0)
    upper = [f"{x(s):.1f},{y(m + d):.1f}" for s, m, d in zip(steps, mean, deviation, strict=True)]
    lower = [f"{x(s):.1f},{y(m - d):.1f}" for s, m, d in zip(steps, mean, deviation, strict=True)]
    points = " ".join(f"{x(s):.1f},{y(m):.1f}" for s, m in zip(steps, mean, strict=True))
    return [
        f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{colour}" opacity="0.12"/>',
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
    ]
