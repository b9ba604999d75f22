"""The staleness study: does NFT with older answers learn as well, and which correction helps? Trains every cell, then
writes the page.

    python -m benchmarks.async.staleness --out runs/staleness            (160 runs of about 2 minutes on a core each)

neg_weight 0.5 and 1, staleness 1, 2 and 4, five corrections, 5 seeds, and the synchronous runs that all are compared
with: on the longest of the quickstart's stories (benchmarks/algorithms), of which the base model gets one in nine
right, and no run gets all. Resumable: a finished cell is kept (its cell.json says so), and the page is made of what is
there. Runs go side by side in `--lanes` processes, one after the other in each.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads; a lane has one core

from benchmarks.algorithms.task import write_problems
from megatron_nft.config import Config, load_config
from megatron_nft.run.run import run_recipe
from megatron_nft.train import train

write_page = import_module("benchmarks.async.staleness_page").write_page  # "async" is a word of Python's own

RECIPE = Path(__file__).resolve().parents[1] / "algorithms" / "recipe.toml"
CORRECTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "cap": ("algorithm.importance_cap=2",),
    "band": ("algorithm.corrections={token_mask = [0.5, 5.0]}",),
    # The ratio held to the policy that sampled, without and with its expectation taken out.
    "engine": ("algorithm.old_logprobs=engine",),
    "centering": ("algorithm.old_logprobs=engine", "algorithm.score_centering=true", "rollout.top_logprobs=32"),
}
STALENESS, WEIGHTS = (1, 2, 4), (1.0, 0.5)
SETTINGS = (
    "train.updates_per_step=4",
    "train.steps=16",
    "train.evaluate_every=4",
    "optimizer.learning_rate=1.5e-5",
    "evaluate.samples=0",
    "evaluate.in_background=false",
    "checkpoint.every=0",
    "run.overwrite=all",
)
KEPT = (
    "async/staleness_mean",
    "nft/correct_rate",
    "nft/ratio_max",
    "nft/truncated_fraction",
    "nft/masked_fraction",
    "nft/moved_right",
    "nft/moved_wrong",
    "rollout/gap_kl",
    "rollout/gap_ess_tokens",
    "rollout/top_mass",
)
"""Metrics of a step that a cell keeps the mean of."""


@dataclass(frozen=True)
class Cell:
    """One run of the study. Staleness 0: synchronous."""

    neg_weight: float
    staleness: int
    correction: str
    seed: int

    @property
    def name(self) -> str:
        return f"w{self.neg_weight:g}-k{self.staleness}-{self.correction}-s{self.seed}"

    def config(self, out: Path) -> Config:
        """Its resolved recipe."""
        own = [f"algorithm.neg_weight={self.neg_weight}", f"rollout.max_staleness={self.staleness}"]
        places = [f"run.seed={self.seed}", f"run.dir={out}", f"run.name={self.name}"]
        data = [f'data.{split}=["{out}/data/{split}.parquet"]' for split in ("train", "held_out")]
        return load_config(RECIPE, [*SETTINGS, *own, *CORRECTIONS[self.correction], *places, *data])


def all_cells(seeds: int) -> list[Cell]:
    """Seed by seed, so that a study cut short still compares like with like."""
    cells = []
    for seed in range(1, seeds + 1):
        for weight in WEIGHTS:
            cells.append(Cell(weight, 0, "none", seed))
            cells += [Cell(weight, staleness, name, seed) for staleness in STALENESS for name in CORRECTIONS]
    return cells


def train_lane(cells: list[Cell], out: Path) -> None:
    """Trains cells one after the other."""
    for cell in cells:
        start, config = time.monotonic(), cell.config(out)
        with (out / f"{cell.name}.log").open("w") as log, redirect_stdout(log):
            run_recipe(config, train, max_staleness=cell.staleness)
        finish(cell, config.run_dir, time.monotonic() - start)


def finish(cell: Cell, folder: Path, seconds: float) -> None:
    """Leaves the cell's curve in cell.json; the weights go."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = {r["step"]: r["eval/greedy_accuracy"] for r in records if r["kind"] == "evaluation"}
    steps = [r for r in records if r["kind"] == "step"]
    means = {}
    for name in KEPT:
        if values := [r[name] for r in steps if r.get(name) is not None]:
            means[name] = max(values) if name == "nft/ratio_max" else sum(values) / len(values)
    result = {**vars(cell), "greedy_accuracy": curve, "means": means, "seconds": seconds}
    shutil.rmtree(folder / "hf")
    partial = folder / "cell.partial"
    partial.write_text(json.dumps(result))
    partial.rename(folder / "cell.json")
    print(f"{cell.name}: {curve[0]:.3f} -> {curve[max(curve)]:.3f} in {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/staleness"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 .. N of every cell (default: 5)")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, a core each (default: 2)")
    parser.add_argument("--only", default="", help="only cells whose name contains this, e.g. k4-cap or s1")
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
        subprocess.Popen([sys.executable, "-m", "benchmarks.async.staleness", *sys.argv[1:], "--lane", str(lane)])
        for lane in range(arguments.lanes if missing else 0)
    ]
    if sum(abs(lane.wait()) for lane in lanes):
        sys.exit("a lane failed: its last cell's log is in --out; the same command goes on where it stopped")
    write_page(out, arguments.page or out)


if __name__ == "__main__":
    main()
