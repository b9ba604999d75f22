"""Graders of one's own, tried before a run on answers that are made for it: do they say what the recipe's method takes?

A recipe comes in, its first training prompts are read; what is wrong goes out as an error. Called by check.py.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_nft.config import OWN_GRADER, Config, RecipeError
from megatron_nft.config.methods import SCORED
from megatron_nft.data.rows import Problem, read_problems
from megatron_nft.types import Verdict
from megatron_nft.verdict.own_grader import judge_own, judge_own_batch, prepare
from megatron_nft.verdict.pool import PRELOAD, GradingPool

MOST_WORKERS, TRY_DEADLINE_S = 4, 10.0
ROWS_LOOKED_AT, PROMPTS_TRIED = 1000, 2
"""Of a training file, and of those of a data source."""


def try_graders(config: Config, names: Sequence[str]) -> None:
    """Has the graders of one's own grade made answers to the first training prompts, if the method takes no scores.

    Args:
        names: of the graders.

    Raises:
        RecipeError: one gives a score between right and wrong, which would end the run after its first sampling.
    """
    if config.algorithm.takes_scores or not names:
        return
    tries = [(problem, answer) for problem in _first_of(config) for answer in _made_answers(problem)]
    if not tries:
        return
    modes, calls = config.verdict.modes, []
    for problem, answer in tries:
        name = modes[problem.data_source]
        item = answer, problem.ground_truth or "", _text(problem), problem.extra_info
        calls.append((_first_verdict, name, item) if name in config.verdict.batches else (judge_own, name, *item))
    load_first = partial(prepare, list(names))
    pool = GradingPool(min(len(calls), MOST_WORKERS), load_first, PRELOAD, config.verdict.memory_gib)
    try:
        verdicts = pool.run(calls, min(config.verdict.deadline_s, TRY_DEADLINE_S))  # what is late says nothing
    finally:
        pool.close()
    scored = {
        problem.data_source: (answer, verdict.reward)
        for (problem, answer), verdict in zip(tries, verdicts, strict=True)
        if verdict.is_graded and verdict.is_scored
    }
    if scored:
        lines = [
            f"  verdict.modes: {source!r} = {modes[source]!r} scores the made answer {answer!r:.60} with {reward:g}, "
            f'and algorithm.name = "{config.algorithm.name}" takes right or wrong only; let the grader say True or '
            f"False, or choose one of {', '.join(SCORED)}"
            for source, (answer, reward) in scored.items()
        ]
        raise RecipeError("\n".join(["graders that give scores:", *lines]))


def _first_of(config: Config) -> Iterator[Problem]:
    """Of each data source that a grader of one's own is for, the first training prompts; of files that are here."""
    own = {source for source, mode in config.verdict.modes.items() if OWN_GRADER.fullmatch(mode)}
    seen: dict[str, int] = {}
    for file in config.data.train:
        if not Path(file).is_file():
            continue  # a name on the hub; or missing, which others say
        for problem in islice(read_problems(file), ROWS_LOOKED_AT):
            if problem.data_source in own and seen.get(problem.data_source, 0) < PROMPTS_TRIED:
                seen[problem.data_source] = seen.get(problem.data_source, 0) + 1
                yield problem


def _made_answers(problem: Problem) -> list[str]:
    """From right to wrong: a share of what is right is what most scores are of."""
    gold = problem.ground_truth or ""
    return list(dict.fromkeys([gold, gold[: (len(gold) + 1) // 2], f"\\boxed{{{gold}}}", _text(problem), "?", ""]))


def _text(problem: Problem) -> str:
    return "\n".join(str(message["content"]) for message in problem.messages)


def _first_verdict(name: str, item: tuple[str, str, str, dict[str, Any]]) -> Verdict:
    """Runs in a worker: a batch of one."""
    return judge_own_batch(name, [item])[0]
