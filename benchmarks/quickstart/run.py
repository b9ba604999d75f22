"""The quickstart over seeds and layouts: what it gains and what it costs. Prints the results table as Markdown.

    python -m benchmarks.quickstart.run seed=1 seed=2 seed=3 "actor.tp=1 actor.pp=2" ...

Each argument is one run: `seed=N`, or overrides of launch/recipes/quickstart.toml. A finished run is not done again
(its folder under --out says so), so an interrupted series goes on where it was.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

COLUMNS = (
    "| run | greedy before | after | points | avg@4 before | after | gap mean, worst step | "
    "loop min | all min | peak GB |"
)


def run(overrides: list[str], folder: Path, recipe: str = "launch/recipes/quickstart.toml") -> None:
    """Trains into `folder`; cost.json at its end holds the minutes and the peak memory of all processes together."""
    start, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "megatron_nft.train", recipe, *overrides]
    with subprocess.Popen([*command, f"run.dir={folder.parent}", f"run.name={folder.name}"]) as process:
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(2.0):  # each look walks all page tables: 0.5 s cost a tenth of a core
                peak = max(peak, _resident_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        done.set()
        watcher.join()
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}")
    cost = {"minutes": (time.monotonic() - start) / 60, "peak_gb": peak / 1e9}
    (folder / "cost.json").write_text(json.dumps(cost))


def _resident_bytes(pid: int) -> int:
    """Proportional set size of a process and all below it: shared pages count once."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def row(name: str, folder: Path) -> str:
    """One line of the table, from metrics.jsonl and cost.json."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "step"]
    first, *_, last = [r for r in records if r["kind"] == "evaluation"]
    cost = json.loads((folder / "cost.json").read_text())
    loop = sum(r.get("time/step_s", 0) + r.get("time/evaluate_s", 0) for r in records)
    greedy, sampled = ([100 * r[key] for r in (first, last)] for key in ("eval/greedy_accuracy", "eval/avg_at_k"))
    return (
        f"| {name} | {greedy[0]:.1f}% | {greedy[1]:.1f}% | {greedy[1] - greedy[0]:+.1f} | {sampled[0]:.1f}% | "
        f"{sampled[1]:.1f}% | {max(r['rollout/logprob_gap_mean'] for r in steps):.1e} | {loop / 60:.1f} | "
        f"{cost['minutes']:.1f} | {cost['peak_gb']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="overrides of one run, separated by spaces")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of the runs")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.runs:
        folder = arguments.out / name.replace(" ", "_").replace("/", "_")
        overrides = [part.replace("seed=", "run.seed=") if part.startswith("seed=") else part for part in name.split()]
        if not (folder / "cost.json").exists():
            run([*overrides, "run.overwrite=all"], folder)
        rows.append(row(name, folder))
    print("\n".join(["", COLUMNS, "|" + " --- |" * (COLUMNS.count("|") - 1), *rows]))


if __name__ == "__main__":
    main()
