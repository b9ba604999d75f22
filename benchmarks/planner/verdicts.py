"""Answers of a step that one grading process takes a second, by what their ground truths are. Prints Markdown.

    python -m benchmarks.planner.verdicts --data FOLDER [--groups 60]

FOLDER has math500.parquet and olympiadbench.parquet. Groups of 16 answers of 13 KB, through the judge as in a run, with
one worker; of the answers to a prompt as many differ as the table says (equal ones are graded once), each is the ground
truth, in another notation or as it is, or another problem's. "by CPU time": of the worker, whatever else runs.
"""

import argparse
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks.scale.answers import WORDS
from benchmarks.verdicts.run import NAMES, rewritten
from megatron_nft.config import VerdictConfig
from megatron_nft.types import Prompt, Rollout, RolloutGroup
from megatron_nft.verdict.judge import Judge

GROUP, CHARACTERS = 16, 13_000
NUMBER = re.compile(r"-?\d[\d,.]*")


def groups(golds: Sequence[str], count: int, differing: int, seed: int = 0) -> list[RolloutGroup]:
    """So many groups of `golds`, in each so many answers that differ, the right one among them."""
    draw = random.Random(seed)
    found = []
    for place in range(count):
        gold = golds[place * len(golds) // count]
        others = [other for other in dict.fromkeys(golds) if other != gold]
        said = [rewritten(gold), *draw.sample(others, differing - 1)]
        said += [draw.choice(said) for _ in range(GROUP - differing)]
        prompt = Prompt(prompt_id=str(place), text="", token_ids_P=_none(), ground_truth=gold, data_source="")
        found.append(RolloutGroup(prompt=prompt, rollouts=tuple(_rollout(answer) for answer in said)))
    return found


def _none() -> np.ndarray:
    return np.zeros(1, np.int32)


def _rollout(answer: str) -> Rollout:
    text = (WORDS * (CHARACTERS // len(WORDS) + 1))[:CHARACTERS] + rf" Therefore the answer is $\boxed{{{answer}}}$."
    logprobs = np.zeros(1, np.float32)
    return Rollout(text=text, token_ids_A=_none(), engine_logprobs_A=logprobs, truncated=False, policy_version=0)


def rates(graded: Sequence[RolloutGroup]) -> tuple[float, float]:
    """Answers a second: on the clock, by CPU time."""
    with Judge(VerdictConfig(workers=1)) as judge:
        judge.warm_up()
        begun, cpu_s = time.perf_counter(), _cpu_s()
        judge.judge(graded)
        seconds, cpu_s = time.perf_counter() - begun, _cpu_s() - cpu_s
    return GROUP * len(graded) / seconds, GROUP * len(graded) / cpu_s


def _cpu_s() -> float:
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--groups", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.groups < 1:
        parser.error(f"--groups {arguments.groups}; give at least 1")
    if missing := [name for name in NAMES if not (arguments.data / f"{name}.parquet").is_file()]:
        parser.error(f"--data {arguments.data}: no {missing[0]}.parquet there; launch/download_data.sh fetches it")
    tables = {name: pq.read_table(arguments.data / f"{name}.parquet", columns=["reward_model"]) for name in NAMES}
    golds = {name: [row["reward_model"]["ground_truth"] for row in t.to_pylist()] for name, t in tables.items()}
    every = [gold for of_one in golds.values() for gold in of_one]
    kinds = {
        "plain numbers": [gold for gold in every if NUMBER.fullmatch(gold)],
        "MATH-500's": golds["math500"],
        "OlympiadBench's": golds["olympiadbench"],
        "formulas": [gold for gold in every if not NUMBER.fullmatch(gold)],
    }
    print("| ground truths | 4 of 16 differ | by CPU time | all 16 differ | by CPU time |")
    print("| --- | --- | --- | --- | --- |")
    for kind, of_kind in kinds.items():
        cells = [rate for differing in (4, GROUP) for rate in rates(groups(of_kind, arguments.groups, differing))]
        print(f"| {kind} | " + " | ".join(f"{rate:,.0f}/s" for rate in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
