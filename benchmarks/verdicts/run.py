"""How fast verdicts come: two grading processes beside one math-verify process, on the same answers. Prints Markdown.

    python -m benchmarks.verdicts.run [--data FOLDER] [--rounds 5] [--limit 1000] [--skip-hanging]

Answers: the ground truths of MATH-500 and OlympiadBench, each in a sentence, as an answer to its own problem in another
notation (1/2 for \\frac{1}{2} ...: no equal text) and to another problem; an answer once, so that no cache helps.
"by CPU time": math-verify's CPU seconds over those of the busier of ours: what the ratio would be on idle cores.
"one math-verify process" is its documented use: verify(parse(gold), parse(answer)), its timeouts on.
"""

import argparse
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.judge import Judge

NAMES = ("math500", "olympiadbench")
HANGING = (
    r"\sqrt{{2}}^{{9^{{9^{{9}}}}}} + {n}",
    r"\pi^{{9^{{9^{{9}}}}}} + {n}",
    r"(\sqrt{{2}} + 1)^{{9^{{9^{{9}}}}}} - {n}",
    r"\sqrt{{3}}^{{7^{{7^{{7^{{7}}}}}}}} \cdot {n}",
)
NUM_MANY, HANGING_SHARE, DEADLINE_S = 2000, 0.05, 1.0

Case = tuple[str, str]  # answer's text, ground truth


def rewritten(gold: str) -> str:
    """Another notation of the same answer, as models write it."""
    text = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\\dfrac{\1}{\2}", gold)
    text = text.replace(r"\left", "").replace(r"\right", "").replace(r"\cdot", r"\times")
    if re.fullmatch(r"-?\d{1,6}", text):
        return text + ".0"
    return rf"\displaystyle {text}" if text == gold else text


def cases(folder: Path, name: str, limit: int) -> dict[str, list[Case]]:
    """kind -> answers with their ground truths, an answer once; `limit` of each, spread over all."""
    rows = pq.read_table(folder / f"{name}.parquet", columns=["reward_model"]).to_pylist()
    golds = [row["reward_model"]["ground_truth"] for row in rows]
    half = len(golds) // 2  # the next problem's would be a gift to a process that caches parsed formulas
    sentence = r"Adding up, we find that the answer is $\boxed{{{}}}$, as was to be shown."
    right = [(sentence.format(rewritten(gold)), gold) for gold in golds]
    wrong = [(sentence.format(other), gold) for gold, other in zip(golds, golds[half:] + golds[:half], strict=True)]
    every = {"right": list(dict.fromkeys(right)), "wrong": list(dict.fromkeys(wrong))}
    return {kind: graded[:: max(1, len(graded) // limit)][:limit] for kind, graded in every.items()}


Seconds = tuple[float, float]  # on the clock; of CPU, of the busiest process


def math_verify_alone(graded: Sequence[Case]) -> Seconds:
    """Of one math-verify process; called in a process of its own, warm."""
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = (LatexExtractionConfig(boxed_match_priority=0),)
    verify(parse(r"\boxed{\frac{1}{2}}", config), parse(r"\boxed{0.5}", config))
    start, cpu = time.perf_counter(), time.process_time()
    for answer, gold in graded:
        verify(parse(rf"\boxed{{{gold}}}", config), parse(answer, config))
    return time.perf_counter() - start, time.process_time() - cpu


def in_own_process(folder: Path, name: str, kind: str, limit: int) -> Seconds:
    """`math_verify_alone`, timed there: sympy's caches are empty, as ours are."""
    command = [sys.executable, "-m", "benchmarks.verdicts.run", "--data", str(folder), "--alone", name, kind]
    command += ["--limit", str(limit)]
    wall_s, cpu_s = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(wall_s), float(cpu_s)


def ours(graded: Sequence[Case]) -> tuple[Seconds, Counter]:
    """Of a new, warm Judge; and its verdicts."""
    with Judge(VerdictConfig(workers=2, deadline_s=10)) as judge:
        judge.warm_up()
        workers = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
        cpu = [sum(worker.cpu_times()[:2]) for worker in workers]
        start = time.perf_counter()
        verdicts = judge.judge_answers(*zip(*graded, strict=True), ["math"] * len(graded))
        wall_s = time.perf_counter() - start
        cpu_s = max(sum(worker.cpu_times()[:2]) - before for worker, before in zip(workers, cpu, strict=True))
        return (wall_s, cpu_s), Counter(v.kind for v in verdicts)


def throughput(folder: Path, rounds: int, limit: int) -> None:
    """Both ways in turn, `rounds` times; medians."""
    print("| answers | | math-verify, 1 process | megatron_nft, 2 processes | ratio (range) | by CPU time | verdicts |")
    print("| --- " * 7 + "|")
    total = np.zeros((rounds, 2, 2))  # round; math-verify, ours; clock, CPU
    for name in NAMES:
        for kind, graded in cases(folder, name, limit).items():
            seconds, kinds = np.zeros((rounds, 2, 2)), Counter()
            for index in range(rounds):
                seconds[index, 0] = in_own_process(folder, name, kind, limit)
                seconds[index, 1], kinds = ours(graded)
            total += seconds
            rates = len(graded) / np.median(seconds[:, :, 0], axis=0)
            print(
                f"| {name}, {kind} | {len(graded)} | {rates[0]:.0f}/s | {rates[1]:.0f}/s | {ratios(seconds)} | "
                f"{dict(kinds)} |",
                flush=True,
            )
    print(f"| **all** | | | | {ratios(total)} | |")


def ratios(seconds: np.ndarray) -> str:
    """Two cells: median and range of each pair's ratio on the clock, median of its ratio by CPU time."""
    wall, cpu = (seconds[:, 0] / seconds[:, 1]).T
    return f"{np.median(wall):.2f} ({wall.min():.2f}-{wall.max():.2f}) | {np.median(cpu):.2f}"


def hanging() -> None:
    """2,000 answers, 5% of them without end."""
    every = round(1 / HANGING_SHARE)
    graded = []
    for n in range(NUM_MANY):
        answer = (
            HANGING[n // every % len(HANGING)].format(n=n + 2) if n % every == 0 else rf"\frac{{\sqrt{{2}}}}{{2}} + {n}"
        )
        graded.append((rf"So \boxed{{{answer}}}.", rf"{n} + \sqrt{{\frac{{1}}{{2}}}}"))
    with Judge(VerdictConfig(workers=2, deadline_s=DEADLINE_S)) as judge:
        judge.warm_up()
        start = time.perf_counter()
        verdicts = judge.judge_answers(*zip(*graded, strict=True), ["math"] * len(graded))
        spent_s = time.perf_counter() - start
        again = judge.judge_answers(*zip(*graded[1:every], strict=True), ["math"] * (every - 1))
    kinds = Counter(v.kind for v in verdicts)
    by_deadlines_s = kinds["timeout"] * DEADLINE_S / 2
    print(
        f"{NUM_MANY} answers, {NUM_MANY // every} of them hanging, deadline {DEADLINE_S:g} s, 2 processes: "
        f"{spent_s:.1f} s, of which the deadlines alone take {by_deadlines_s:.1f} s; {dict(kinds)}; "
        f"afterwards {len(again)} more: {dict(Counter(v.kind for v in again))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/work/shared/data"), help="folder of the parquet files")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved pairs")
    parser.add_argument("--limit", type=int, default=1000, help="answers of each data set and kind")
    parser.add_argument("--skip-hanging", action="store_true", help="throughput only")
    parser.add_argument("--alone", nargs=2, metavar=("NAME", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        name, kind = arguments.alone
        print(*math_verify_alone(cases(arguments.data, name, arguments.limit)[kind]))
        return
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in ("math-verify", "sympy", "Pebble"))
        + "\n"
    )
    throughput(arguments.data, arguments.rounds, arguments.limit)
    if not arguments.skip_hanging:
        print()
        hanging()


if __name__ == "__main__":
    main()
