"""Steps of the asynchronous driver beside the synchronous one, with generation slowed to 1x and 2x of training.

    python benchmarks/async/run.py [--steps 12] [--slow 1 2] [--repeats 2] [section.key=value ...]

A first run without slowing measures training (pack, score, train, sync) and the tokens that a step samples. Then the
engine process is held to a rate, in answer tokens per second, at which those tokens take `slow` times as long as
training does: after each decode step it sleeps, and leaves the core alone. Synchronous and asynchronous runs take
turns. The learning rate is next to nothing, so that all steps are alike. Prints the table as Markdown; a finished run
is not done again (--out).
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

from megatron_nft.cluster import workers
from megatron_nft.config import load_config
from megatron_nft.train import Training, train
from megatron_nft.train_async import AsyncTraining

SETTINGS = ["actor.tp=1", "optimizer.learning_rate=1e-12", "checkpoint.every=0", "data.held_out=[]",
            "train.groups_per_step=16", "train.updates_per_step=2"]  # fmt: skip
WARM_UP = 2
"""Steps that are left out: the first has nothing ready, the second an engine that was ahead of it."""
GENERATION, TRAINING = ("rollout", "verdict"), ("pack", "score", "train", "sync")
COLUMNS = ("generation", "driver", "step s", "generation s", "training s", "/ the longer", "engines idle",
           "trainer idle", "staleness", "dropped")  # fmt: skip


class SlowEngineProcess(workers._EngineProcess):
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


def run(folder: Path, kind: str, rate: float, overrides: list[str]) -> list[dict[str, float]]:
    """One run in a process of its own; its steps after the warm-up."""
    if not (folder / "hf").exists():
        command = [sys.executable, __file__, "--child", kind, f"run.dir={folder.parent}", f"run.name={folder.name}"]
        subprocess.run([*command, *overrides], env=os.environ | {"NFT_TOKENS_PER_S": repr(rate)}, check=True)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"][WARM_UP:]


def child(kind: str, overrides: list[str]) -> None:
    """The run itself."""
    if float(os.environ["NFT_TOKENS_PER_S"]) < float("inf"):
        workers._EngineProcess = SlowEngineProcess
    train(load_config("launch/recipes/quickstart.toml", overrides), AsyncTraining if kind == "async" else Training)


def median(steps: list[dict[str, float]], *names: str) -> float:
    """Of the sum of these metrics."""
    return statistics.median(sum(step.get(name, 0.0) for name in names) for step in steps)


def stages(*names: str) -> list[str]:
    return [f"time/{name}_s" for name in names]


def share(steps: list[dict[str, float]], name: str) -> str:
    """Of all steps' time."""
    return f"{100 * sum(step[name] for step in steps) / sum(step['time/step_s'] for step in steps):.1f}%"


def row(slow: float, kind: str, steps: list[dict[str, float]], longer: float) -> str:
    seconds = median(steps, "time/step_s")
    generation = f"{median(steps, *stages(*GENERATION)):.2f}" if kind == "sync" else ""
    cells = [f"{slow:g}x", kind, f"{seconds:.2f}", generation, f"{median(steps, *stages(*TRAINING)):.2f}"]
    cells.append(f"{seconds / longer:.2f}")
    if kind == "async":
        cells += [share(steps, "async/engine_idle_s"), share(steps, "time/wait_s")]
        cells += [f"{median(steps, 'async/staleness_mean'):.2f}", f"{median(steps, 'async/groups_dropped'):g}"]
    return "| " + " | ".join(cells + [""] * (len(COLUMNS) - len(cells))) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/async"), help="folder of the runs")
    parser.add_argument("--steps", type=int, default=12, help=f"of each run, {WARM_UP} of them warm-up (default: 12)")
    parser.add_argument("--slow", type=float, nargs="+", default=[1.0, 2.0], help="generation / training")
    parser.add_argument("--repeats", type=int, default=2, help="times that both drivers take turns (default: 2)")
    parser.add_argument("--child", choices=("sync", "async"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    if arguments.child:
        child(arguments.child, arguments.overrides)
        return
    overrides = [*SETTINGS, f"train.steps={arguments.steps}", *arguments.overrides]
    out = arguments.out.resolve()
    free = run(out / "free", "sync", float("inf"), overrides)
    training = median(free, *stages(*TRAINING))
    tokens = statistics.median(step["rollout/answers"] * step["rollout/answer_tokens_mean"] for step in free)
    lines = []
    for slow in arguments.slow:
        steps: dict[str, list[dict[str, float]]] = {"sync": [], "async": []}
        for repeat in range(arguments.repeats):
            for kind, taken in steps.items():
                taken += run(out / f"{slow:g}x_{kind}_{repeat}", kind, tokens / (slow * training), overrides)
        longer = max(median(steps["sync"], *stages(*side)) for side in (GENERATION, TRAINING))
        lines += [row(slow, kind, taken, longer) for kind, taken in steps.items()]
    print(f"\nwithout slowing: training {training:.2f} s, {tokens:.0f} answer tokens a step")
    print("\n".join([f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS), *lines]))


if __name__ == "__main__":
    main()
