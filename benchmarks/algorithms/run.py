"""NFT and its baselines from one base model: trains every cell of the study, then writes its table and curves.

    python -m benchmarks.algorithms.run --out runs/algorithms            (105 runs, hours on two cores)

Resumable: a finished cell is kept (its cell.json says so) and the page is made of what is there. Runs go side by side
in `--lanes` processes, one after the other in each.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads; a lane has one core

from benchmarks.algorithms.cells import Cell, all_cells
from benchmarks.algorithms.page import write_page
from benchmarks.algorithms.task import write_problems
from megatron_nft.run.run import run_recipe
from megatron_nft.train import train


def train_lane(cells: list[Cell], out: Path) -> None:
    """Trains cells one after the other."""
    for cell in cells:
        start, config = time.monotonic(), cell.config(out)
        with (out / f"{cell.name}.log").open("w") as log, redirect_stdout(log):
            run_recipe(config, train)
        finish(cell, config.run_dir, time.monotonic() - start)


def finish(cell: Cell, folder: Path, seconds: float) -> None:
    """Leaves the cell's curve in cell.json; the weights go."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = {r["step"]: r["eval/greedy_accuracy"] for r in records if r["kind"] == "evaluation"}
    steps = [r for r in records if r["kind"] == "step"]
    result = {
        "method": cell.method,
        "updates": cell.updates,
        "seed": cell.seed,
        "greedy_accuracy": curve,
        "correct_rate": [r["nft/correct_rate"] for r in steps],
        "ratio_max": max(r["nft/ratio_max"] for r in steps),
        "seconds": seconds,
    }
    shutil.rmtree(folder / "hf")
    partial = folder / "cell.partial"
    partial.write_text(json.dumps(result))
    partial.rename(folder / "cell.json")
    print(f"{cell.name}: {curve[0]:.3f} -> {curve[max(curve)]:.3f} in {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 .. N of every method (default: 5)")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, a core each (default: 2)")
    parser.add_argument("--only", default="", help="only cells whose name contains this, e.g. u16-s1")
    parser.add_argument("--page", type=Path, help="folder for the table and the curves (default: --out)")
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    chosen = [cell for cell in all_cells(arguments.seeds) if arguments.only in cell.name]
    missing = [cell for cell in chosen if not (out / cell.name / "cell.json").exists()]
    if arguments.lane is not None:
        train_lane(missing[arguments.lane :: arguments.lanes], out)
        return
    write_problems(out / "data")
    print(f"{len(chosen)} cells, {len(missing)} to train", flush=True)
    lanes = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.algorithms.run", *sys.argv[1:], "--lane", str(lane)])
        for lane in range(arguments.lanes if missing else 0)
    ]
    if sum(abs(lane.wait()) for lane in lanes):
        sys.exit("a lane failed: its last cell's log is in --out; the same command goes on where it stopped")
    write_page(out, arguments.page or out, arguments.seeds)


if __name__ == "__main__":
    main()
