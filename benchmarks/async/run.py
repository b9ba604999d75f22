"""Steps of the asynchronous driver beside the synchronous one, with generation slowed to 1x and 2x of training.

    python -m benchmarks.async.run [--steps 12] [--slow 1 2] [--staleness 1 2] [section.key=value ...]

A first run without slowing measures training (pack, score, train, sync) and the tokens that a step samples. Then the
engine process is held to a rate, in answer tokens per second, at which those tokens take `slow` times as long as
training does: after each decode step it sleeps, and leaves the core alone. Synchronous and asynchronous runs take
turns. The learning rate is next to nothing, so that all steps are alike. Prints the table as Markdown: means over a
run's steps, their median and range over runs. A finished run is not done again (--out).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megatron_nft.cluster import fleet
from megatron_nft.config import load_config
from megatron_nft.run.run import run_recipe
from megatron_nft.train import train

SETTINGS = ["actor.tp=1", "optimizer.learning_rate=1e-12", "checkpoint.every=0", "data.held_out=[]",
            "train.groups_per_step=16", "train.updates_per_step=2"]  # fmt: skip
WARM_UP, COOL_DOWN = 2, 3
"""Steps that are left out: in the first nothing is ready, and in the last no later one is left to sample for."""
GENERATION, TRAINING = ("rollout", "verdict"), ("pack", "score", "train", "sync")
COLUMNS = ("generation", "driver", "step s", "step / longer side", "generation s", "training s", "engines idle",
           "trainer idle", "tokens an answer", "staleness", "groups dropped a step")  # fmt: skip
Steps = list[dict[str, float]]
"""Records of metrics.jsonl."""


class SlowEngineProcess(fleet._EngineProcess):
    """An engine's process that samples no more than NFT_TOKENS_PER_S answer tokens a second."""

    def build(self, *arguments: Any) -> None:
        super().build(*arguments)
        rate, vllm = float(os.environ["NFT_TOKENS_PER_S"]), self.engine._llm.llm_engine
        step = vllm.step

        def slow_step() -> Any:
            start, outputs = time.perf_counter(), step()
            num_tokens = len(vllm.engine_core.engine_core.scheduler.running)
            time.sleep(max(start + num_tokens / rate - time.perf_counter(), 0.0))
            return outputs

        vllm.step = slow_step


def run(folder: Path, kind: str, rate: float, overrides: list[str]) -> Steps:
    """One run in a process of its own; its steps without the first and last."""
    if not (folder / "hf").exists():
        command = [sys.executable, __file__, "--child", kind, f"run.dir={folder.parent}", f"run.name={folder.name}"]
        subprocess.run([*command, *overrides], env=os.environ | {"NFT_TOKENS_PER_S": repr(rate)}, check=True)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"][WARM_UP:-COOL_DOWN]


def child(kind: str, overrides: list[str]) -> None:
    """The run itself."""
    if float(os.environ["NFT_TOKENS_PER_S"]) < float("inf"):
        fleet._EngineProcess = SlowEngineProcess
    config = load_config("launch/recipes/quickstart.toml", overrides)
    run_recipe(config, train, max_staleness=config.rollout.max_staleness if kind == "async" else 0)


def mean(steps: Steps, *names: str) -> float:
    """Per step, of the sum of these metrics."""
    return statistics.mean(sum(step.get(name, 0.0) for name in names) for step in steps)


def seconds(steps: Steps, *stages: str) -> float:
    return mean(steps, *[f"time/{stage}_s" for stage in stages])


def longer_side(sync: Steps) -> float:
    """Seconds per step of what takes a synchronous run longer."""
    return max(seconds(sync, *GENERATION), seconds(sync, *TRAINING))


def over_runs(values: list[float], digits: int = 2, unit: str = "") -> str:
    """The median, and the range."""
    middle = f"{statistics.median(values):.{digits}f}{unit}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def row(slow: float, driver: str, runs: list[Steps], sync: list[Steps]) -> str:
    """Of runs that took turns with these synchronous ones."""
    cells = [f"{slow:g}x", driver, over_runs([seconds(steps, "step") for steps in runs])]
    ratios = [seconds(steps, "step") / longer_side(beside) for steps, beside in zip(runs, sync, strict=True)]
    cells.append(over_runs(ratios))
    cells.append("" if runs is not sync else over_runs([seconds(steps, *GENERATION) for steps in runs]))
    cells.append(over_runs([seconds(steps, *TRAINING) for steps in runs]))
    idle = ("async/engine_idle_s", "time/wait_s")
    if runs is sync:  # each side waits while the other works
        shares = [[seconds(steps, *side) / seconds(steps, "step") for steps in runs] for side in (TRAINING, GENERATION)]
    else:
        shares = [[mean(steps, name) / seconds(steps, "step") for steps in runs] for name in idle]
    cells += [over_runs([100 * share for share in side], 1, "%") for side in shares]
    cells.append(over_runs([mean(steps, "rollout/answer_tokens_mean") for steps in runs], 1))
    if runs is not sync:
        cells.append(over_runs([mean(steps, "async/staleness_mean") for steps in runs]))
        cells.append(over_runs([mean(steps, "async/groups_dropped") for steps in runs], 1))
    return "| " + " | ".join(cells + [""] * (len(COLUMNS) - len(cells))) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/async"), help="folder of the runs")
    parser.add_argument(
        "--steps", type=int, default=12, help=f"of each run, {WARM_UP + COOL_DOWN} of them left out (default: 12)"
    )
    parser.add_argument("--slow", type=float, nargs="+", default=[1.0, 2.0], help="generation / training")
    parser.add_argument("--staleness", type=int, nargs="+", default=[1, 2], help="rollout.max_staleness")
    parser.add_argument("--repeats", type=int, default=2, help="times that all drivers take turns (default: 2)")
    parser.add_argument("--child", choices=("sync", "async"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    if arguments.child:
        child(arguments.child, arguments.overrides)
        return
    overrides = [*SETTINGS, f"train.steps={arguments.steps}", *arguments.overrides]
    out = arguments.out.resolve()
    free = run(out / "free", "sync", float("inf"), overrides)
    training = seconds(free, *TRAINING)
    tokens = mean(free, "rollout/answers") * mean(free, "rollout/answer_tokens_mean")
    lines = []
    for slow in arguments.slow:
        rate, sync = tokens / (slow * training), []
        runs: dict[int, list[Steps]] = {staleness: [] for staleness in arguments.staleness}
        for repeat in range(arguments.repeats):
            sync.append(run(out / f"{slow:g}x_sync_{repeat}", "sync", rate, overrides))
            for staleness in runs:
                settings = [*overrides, f"rollout.max_staleness={staleness}"]
                folder = out / f"{slow:g}x_staleness_{staleness}_{repeat}"
                runs[staleness].append(run(folder, "async", rate, settings))
        lines.append(row(slow, "synchronous", sync, sync))
        lines += [row(slow, f"staleness {staleness}", taken, sync) for staleness, taken in runs.items()]
    print(f"\nwithout slowing: training {training:.2f} s, {tokens:.0f} answer tokens a step")
    print("\n".join([f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS), *lines]))


if __name__ == "__main__":
    main()
