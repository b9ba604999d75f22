r"""How many wrong answers a grader takes for right, and how many right ones it refuses. Prints Markdown.

    python -m benchmarks.verdicts.robustness --data FOLDER [--each 400] [--without-questions] [--show 5]

Attacks (attacks.py) and right answers in other notations (notations.py), made from the problems of the data sets in
FOLDER, through the Judge as in a run: with their questions, or without. The data sets' texts stay where they are.
"""

import argparse
import os
import platform
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.verdicts.attacks import ATTACKS, Problem
from benchmarks.verdicts.notations import NOTATIONS
from megatron_nft.config import VerdictConfig
from megatron_nft.types import Prompt, Verdict
from megatron_nft.verdict.judge import Judge

NAMES = ("aime24", "math500", "olympiadbench", "gsm8k_test", "math_train")
Maker = Callable[[Problem, random.Random], Iterator[str]]


def problems(folder: Path, names: Sequence[str] = NAMES) -> list[Problem]:
    """Of the data sets, each once; a ground truth that is empty is none."""
    found = []
    for name in names:
        for row in pq.read_table(folder / f"{name}.parquet", columns=["prompt", "reward_model"]).to_pylist():
            gold = row["reward_model"]["ground_truth"].strip()
            if gold:
                found.append(Problem(row["prompt"][-1]["content"], gold))
    return found


def make(makers: Mapping[str, Maker], some: Sequence[Problem], each: int, seed: int) -> list[tuple[str, Problem, str]]:
    """Up to `each` answers of each class, with their problems; the same ones for the same seed."""
    made = []
    for name, maker in makers.items():
        rng = random.Random(f"{seed}/{name}")
        order = list(some)
        rng.shuffle(order)
        answers = (
            (name, problem, answer) for problem in order for answer in maker(problem, rng) if answer != problem.gold
        )
        made += [one for one, _ in zip(answers, range(each), strict=False)]
    return made


def grade(made: Sequence[tuple[str, Problem, str]], judge: Judge, with_questions: bool) -> list[Verdict]:
    """Verdicts, in order; each answer in a sentence, in a box."""
    prompts = [
        Prompt(
            prompt_id=str(i),
            text=p.question,
            token_ids_P=np.zeros(0, np.int32),
            ground_truth=p.gold,
            data_source="math",
        )
        for i, (_, p, _) in enumerate(made)
    ]
    return judge.judge_answers(
        [rf"Adding up, the answer is $\boxed{{{answer}}}$, as was to be shown." for _, _, answer in made],
        [problem.gold for _, problem, _ in made],
        ["math"] * len(made),
        prompts=prompts if with_questions else None,
    )


def table(
    made: Sequence[tuple[str, Problem, str]],
    verdicts: Sequence[Verdict],
    title: str,
    counted: Callable[[Verdict], bool],
) -> str:
    """By class: how many, how many of them are counted, other kinds."""
    lines = [
        f"| {title} | answers | {'false rights' if title == 'attack' else 'refused'} | share | verdicts |",
        "| --- " * 5 + "|",
    ]
    total = 0
    for name in dict.fromkeys(name for name, _, _ in made):
        its = [verdict for (other, _, _), verdict in zip(made, verdicts, strict=True) if other == name]
        bad = sum(map(counted, its))
        total += bad
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(v.kind for v in its).most_common())
        lines.append(f"| {name} | {len(its)} | {bad} | {100 * bad / len(its):.2f}% | {kinds} |")
    lines.append(f"| **all** | {len(made)} | {total} | **{100 * total / max(1, len(made)):.2f}%** | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the parquet files")
    parser.add_argument("--each", type=int, default=400, help="answers of each class at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds an answer")
    parser.add_argument("--without-questions", action="store_true", help="the grader sees no question")
    parser.add_argument("--only", nargs="+", help="these classes only")
    parser.add_argument("--show", type=int, default=0, help="answers of each class to show that came out otherwise")
    arguments = parser.parse_args()
    packages = ", ".join(
        f"{package} {version(package)}" for package in ("math-verify", "latex2sympy2_extended", "sympy")
    )
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {packages}")
    print(f"python -m benchmarks.verdicts.robustness {' '.join(sys.argv[1:])}\n")
    every = problems(arguments.data)
    with Judge(VerdictConfig(workers=arguments.workers, deadline_s=arguments.deadline)) as judge:
        judge.warm_up()
        for title, makers in (("attack", ATTACKS), ("notation", NOTATIONS)):
            makers = {name: maker for name, maker in makers.items() if not arguments.only or name in arguments.only}
            made = make(makers, every, arguments.each, arguments.seed)
            verdicts = grade(made, judge, not arguments.without_questions)
            counted = (lambda v: v.is_right) if title == "attack" else (lambda v: not v.is_right)
            print(table(made, verdicts, title, counted) + "\n", flush=True)
            shown = Counter()
            for (name, problem, answer), verdict in zip(made, verdicts, strict=True):
                if counted(verdict) and shown[name] < arguments.show:
                    shown[name] += 1
                    print(
                        f"{name}: {answer!r} for {problem.gold!r}: {verdict.kind} ({verdict.rule})",
                        file=sys.stderr,
                    )


if __name__ == "__main__":
    main()
