r"""What grading a step's answers costs, by part: 8,192 answers of 45,000 characters, 1% of which hang. Prints Markdown.

    python -m benchmarks.verdicts.scale [--answers 8192] [--characters 45000] [--hanging 0.01] [--workers 2] [--nodes 1]

Groups of 16 answers to made-up questions, half of which have formulas for ground truths and half integers; 5 different
answers a group, long texts with their box at the end. As in a run, the driver's thread hands the groups to a thread
that calls the judge. "The driver's thread" is its CPU time from there to the verdicts: what they cost whoever samples
and trains; the grading thread's is printed, too, since both share one interpreter.
"""

import argparse
import os
import platform
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version

import numpy as np
import ray
from ray.cluster_utils import Cluster

from megatron_nft.cluster.graders import SpreadPool
from megatron_nft.cluster.nodes import living_nodes
from megatron_nft.config import VerdictConfig
from megatron_nft.types import Prompt, Rollout, RolloutGroup
from megatron_nft.verdict.boxes import behind_thought, last_boxed
from megatron_nft.verdict.judge import Judge
from megatron_nft.verdict.math_answer import judge_math, warm_up

GROUP_SIZE, DIFFERENT = 16, 5
SENTENCE = r"We look at $x_{1} + \frac{1}{2}$ and find that \{it\} is as large as before, so that nothing is won yet. "


def groups(num_answers: int, characters: int, hanging: float, seed: int = 0) -> list[RolloutGroup]:
    """Made-up groups, the same ones for the same seed; text of the asked length, thought and box."""
    rng = random.Random(seed)
    made = []
    for number in range(num_answers // GROUP_SIZE):
        is_formula = number % 2 == 0
        gold = (
            rf"\frac{{{number + 3}\sqrt{{{number % 7 + 2}}}}}{{{number % 11 + 2}}}" if is_formula else str(number + 17)
        )
        token_ids = np.zeros(1, np.int32)
        prompt = Prompt(
            prompt_id=f"scale/{number}", text=f"Question {number}: how large is it?", token_ids_P=token_ids,
            ground_truth=gold, data_source="math",
        )  # fmt: skip
        wrong = [
            rf"\frac{{{number + 3}\sqrt{{{k}}}}}{{{k}}}" if is_formula else str(k) for k in range(2, 1 + DIFFERENT)
        ]
        rollouts = []
        for member in range(GROUP_SIZE):
            answer = rng.choice([gold, *wrong])
            if is_formula and rng.random() < 2 * hanging:  # for a number it would not be final, and not be begun
                answer = rf"\sqrt{{2}}^{{9^{{9^{{9}}}}}} + {number * GROUP_SIZE + member}"
            text = "<think>" + SENTENCE * (characters // len(SENTENCE)) + rf"</think>So it is $\boxed{{{answer}}}$."
            rollouts.append(
                Rollout(
                    text=text,
                    token_ids_A=token_ids,
                    engine_logprobs_A=np.zeros(1, np.float32),
                    truncated=False,
                    policy_version=0,
                )
            )
        made.append(RolloutGroup(prompt=prompt, rollouts=tuple(rollouts)))
    return made


@contextmanager
def pools(config: VerdictConfig, nodes: int) -> Iterator[SpreadPool | None]:
    """A pool over the nodes of an emulated Ray; None for one node, which needs no Ray."""
    if nodes == 1:
        yield None
        return
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield SpreadPool(config, [node.ray_id for node in living_nodes()])
    finally:
        ray.shutdown()
        cluster.shutdown()


def in_one_process(made: list[RolloutGroup]) -> tuple[float, float]:
    """Seconds of CPU, here: finding all answers, and grading one group's distinct formulas in 20 of them."""
    start = time.process_time()
    for group in made:
        for rollout in group.rollouts:
            last_boxed(behind_thought(rollout.text) or "")
    read_s = time.process_time() - start
    start, graded = time.process_time(), 0
    for group in made[: 2 * 20 : 2]:
        for answer in {last_boxed(rollout.text) for rollout in group.rollouts}:
            if "9^{9" not in answer:
                judge_math(answer, group.prompt.ground_truth, group.prompt.text)
                graded += 1
    return read_s, graded / (time.process_time() - start)


def timed(judge: Judge, made: list[RolloutGroup]) -> tuple[list[RolloutGroup], float]:
    """Judged, and the CPU seconds of the thread that called the judge."""
    start = time.thread_time()
    return judge.judge(made), time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=8192)
    parser.add_argument("--characters", type=int, default=45_000)
    parser.add_argument("--hanging", type=float, default=0.01, help="share of answers that never end")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--deadline", type=float, default=1.0)
    parser.add_argument("--nodes", type=int, default=1, help="of a Ray that is emulated on this machine")
    arguments = parser.parse_args()
    packages = ", ".join(f"{package} {version(package)}" for package in ("math-verify", "sympy", "Pebble"))
    print(f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}; {packages}")
    print(f"python -m benchmarks.verdicts.scale {' '.join(sys.argv[1:])}\n")
    made = groups(arguments.answers, arguments.characters, arguments.hanging)
    warm_up()
    read_s, formulas_per_s = in_one_process(made)
    config = VerdictConfig(workers=arguments.workers, deadline_s=arguments.deadline)
    with pools(config, arguments.nodes) as pool, Judge(config, pool) as judge:
        judge.warm_up()
        with ThreadPoolExecutor(1) as grader:  # as groups/source.py has it
            start, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
            judged, grader_s = grader.submit(timed, judge, made).result()
            wall_s, thread_s = time.perf_counter() - start, time.thread_time() - thread
            process_s = time.process_time() - process
    kinds = Counter(verdict.kind for group in judged for verdict in group.verdicts)
    print("| part | seconds |\n| --- | --- |")
    print(f"| all, on the clock, {arguments.workers} workers | {wall_s:.1f} |")
    print(f"| the driver's thread, CPU | {thread_s:.2f} |")
    print(f"| the grading thread beside it, CPU | {grader_s:.2f} |")
    print(f"| the driver's process, CPU, all threads | {process_s:.2f} |")
    print(f"| finding all answers in one process, CPU | {read_s:.2f} |")
    alone_s = kinds["timeout"] * arguments.deadline / arguments.workers
    print(f"| deadlines alone, {kinds['timeout']} timeouts | {alone_s:.1f} |")
    print(f"\n{dict(kinds)}; {formulas_per_s:.0f} formulas/s a process by CPU time;", end=" ")
    print(f"driver's peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
