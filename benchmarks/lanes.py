"""A study of many small runs, one cell each: cells side by side in a few lanes, one after the other in each.

A lane's ranks and engines serve one cell after another, as long as cells are started alike: a start is a quarter of a
small run. Resumable: a finished cell is kept (its cell.json says so), and the page is made of what is there. Used by
algorithms/ and async/.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads; a lane has one core

from benchmarks.algorithms.task import write_problems
from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import Config
from megatron_nft.run.parts import Processes
from megatron_nft.run.run import run_recipe
from megatron_nft.train import train


class Cell(Protocol):
    """One run of a study, by a name that is its folder's, too."""

    @property
    def name(self) -> str: ...

    @property
    def max_staleness(self) -> int: ...

    def config(self, out: Path) -> Config:
        """Its resolved recipe, of a run in `out`, with the problems in `out`/data."""


@dataclass(frozen=True)
class Study:
    """What differs between studies.

    Attributes:
        module: that calls `main`, as `python -m` takes it.
        out: folder of the runs, unless another is given.
        cells: of so many seeds, those first that are to be trained first.
        kept: of a cell, what its cell.json has besides its curve, from the records of its steps.
        write_page: table and curves of `out` into a folder, of so many seeds.
    """

    module: str
    out: str
    cells: Callable[[int], Sequence[Cell]]
    kept: Callable[[Any, list[dict[str, Any]]], dict[str, Any]]
    write_page: Callable[[Path, Path, int], None]

    def main(self, description: str | None) -> None:
        """The command line: trains what is missing, then writes the page."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument(
            "--out", type=Path, default=Path(self.out), help=f"folder of the runs (default: {self.out})"
        )
        parser.add_argument("--seeds", type=int, default=5, help="seeds 1 .. N of every cell (default: 5)")
        parser.add_argument("--lanes", type=int, default=2, help="runs side by side, a core each (default: 2)")
        parser.add_argument("--only", default="", help="only cells whose name contains this, e.g. u16-s1")
        parser.add_argument("--page", type=Path, help="folder for the table and the curves (default: --out)")
        parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
        arguments = parser.parse_args()
        out = arguments.out.resolve()
        chosen = [cell for cell in self.cells(arguments.seeds) if arguments.only in cell.name]
        missing = [cell for cell in chosen if not (out / cell.name / "cell.json").exists()]
        if arguments.lane is not None:
            self._train_lane(missing[arguments.lane :: arguments.lanes], out)
            return
        write_problems(out / "data")
        print(f"{len(chosen)} cells, {len(missing)} to train", flush=True)
        lanes = [
            subprocess.Popen([sys.executable, "-m", self.module, *sys.argv[1:], "--lane", str(lane)])
            for lane in range(arguments.lanes if missing else 0)
        ]
        if sum(abs(lane.wait()) for lane in lanes):
            sys.exit("a lane failed: its last cell's log is in --out; the same command goes on where it stopped")
        self.write_page(out, arguments.page or out, arguments.seeds)

    def _train_lane(self, cells: Sequence[Cell], out: Path) -> None:
        with ExitStack() as stack:
            processes, started_for = None, None
            for cell in cells:
                start, config = time.monotonic(), cell.config(out)
                if started_for != (started_for := _what_starts(config)):
                    stack.close()
                    processes = _start(config, stack, out / "logs" / cell.name)
                with (out / f"{cell.name}.log").open("w") as log, redirect_stdout(log):
                    run_recipe(config, train, max_staleness=cell.max_staleness, processes=processes)
                self._finish(cell, config.run_dir, time.monotonic() - start)

    def _finish(self, cell: Cell, folder: Path, seconds: float) -> None:
        """Leaves the cell's curve in cell.json; the weights go."""
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        curve = {r["step"]: r["eval/greedy_accuracy"] for r in records if r["kind"] == "evaluation"}
        result = {"greedy_accuracy": curve, "seconds": seconds}
        result |= self.kept(cell, [r for r in records if r["kind"] == "step"])
        shutil.rmtree(folder / "hf")
        partial = folder / "cell.partial"
        partial.write_text(json.dumps(result))
        partial.rename(folder / "cell.json")
        print(f"{cell.name}: {curve[0]:.3f} -> {curve[max(curve)]:.3f} in {seconds:.0f} s", flush=True)


def _what_starts(config: Config) -> tuple[Any, ...]:
    """What ranks and engines are started with; the rest comes with each run."""
    return config.model, config.rollout, config.actor, config.lora, config.cluster, config.max_sequence_tokens


def _start(config: Config, stack: ExitStack, logs: Path) -> Processes:
    """Ranks and engines, which end with the stack. Each run has the ranks build its model."""
    placement = stack.enter_context(ray_cluster(config))
    processes = Processes(
        actors=Actors(config, placement, logs),
        engines=Fleet(config, placement, logs=logs, starts_empty=True),
    )
    processes.engines.begin_build().wait()
    return processes
