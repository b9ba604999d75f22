"""Rollouts -> verdicts. The driver's `judge` stage, and the benchmarks' grader.

The data_source of a prompt picks its grader (graders.py). The driver extracts the answer, looks it up among earlier
verdicts, and sends only new ones to the pool: the K answers of a group are mostly the same few. Verdicts of graders of
one's own are not kept for later: who knows what they depend on.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from threading import Lock
from typing import NamedTuple

from megatron_nft.config import VerdictConfig
from megatron_nft.types import Prompt, RolloutGroup, Verdict
from megatron_nft.verdict.check import PRELOAD, check_own_graders, own_graders
from megatron_nft.verdict.graders import grader_of
from megatron_nft.verdict.math_answer import MAX_ANSWER_CHARS, judge_math, last_boxed
from megatron_nft.verdict.own_grader import prepare
from megatron_nft.verdict.pool import Call, GradingPool, JudgeError

CACHE_SIZE = 100_000  # verdicts, about 0.5 KB each
# A "timeout" or "error" may be the machine's fault: it holds for one call of the judge only.
CACHED_KINDS = ("right", "wrong", "unparsable")
WARM_UP_DEADLINE_S = 60.0

# (answer, ground truth, verdict): graders that return 0 for everything look like a weak model. No short cuts here.
KNOWN_ANSWERS = ((r"so \boxed{2\sqrt{2}}", r"\sqrt{8}", "right"), (r"so \boxed{3\sqrt{2}}", r"\sqrt{8}", "wrong"))


class _Case(NamedTuple):
    """Answers that are one case have one verdict."""

    answer: str  # extracted
    gold: str
    source: str
    prompt: int  # for a grader of one's own: id() of the Prompt, of which it gets text and extra_info


class Judge:
    """Grades answers in a warm pool of processes. A context manager; threads that grade take turns."""

    def __init__(self, config: VerdictConfig):
        self.config = config
        self._pool = GradingPool(config.workers, partial(prepare, own_graders(config)), PRELOAD, config.memory_gib)
        self._cache: OrderedDict[_Case, Verdict] = OrderedDict()
        self._turn = Lock()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def warm_up(self) -> None:
        """Starts the workers and has them grade answers whose verdicts are known.

        Raises:
            RecipeError: a grader of one's own can't be used.
            JudgeError: the workers don't start, or a known answer gets another verdict.
        """
        check_own_graders(self.config)
        verdicts = self._pool.run(
            [(judge_math, last_boxed(a), gold) for a, gold, _ in KNOWN_ANSWERS], WARM_UP_DEADLINE_S
        )
        for (answer, gold, expected), verdict in zip(KNOWN_ANSWERS, verdicts, strict=True):
            if verdict.kind != expected:
                raise JudgeError(
                    f"grading is broken: {answer!r} against {gold!r} should be {expected!r} but is {verdict.kind!r} "
                    f"({verdict.detail}); check the installation of math-verify"
                )

    def judge(
        self, groups: Sequence[RolloutGroup], on_progress: Callable[[int, int], None] | None = None
    ) -> list[RolloutGroup]:
        """The groups with their verdicts set. Truncated answers are graded too; RolloutGroup counts them as wrong.

        Args:
            on_progress: called with (answers graded, all answers) as verdicts arrive.
        """
        members = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
        with self._turn:
            verdicts = self.judge_answers(
                [rollout.text for _, rollout in members],
                [prompt.ground_truth for prompt, _ in members],
                [prompt.data_source for prompt, _ in members],
                on_progress,
                [prompt for prompt, _ in members],
            )
        arriving = iter(verdicts)
        return [dataclasses.replace(group, verdicts=tuple(next(arriving) for _ in group.rollouts)) for group in groups]

    def judge_answers(
        self,
        answers: Sequence[str],
        golds: Sequence[str],
        data_sources: Sequence[str],
        on_progress: Callable[[int, int], None] | None = None,
        prompts: Sequence[Prompt] | None = None,
    ) -> list[Verdict]:
        """Verdicts of the answers' texts, in order. An answer that takes longer than deadline_s gets "timeout".

        Args:
            prompts: of the answers, for graders of one's own; without them these get an empty prompt and extra_info.

        Raises:
            JudgeError: grading itself is broken.
        """
        verdicts: list[Verdict | None] = [None] * len(answers)
        waiting: dict[_Case, list[int]] = {}  # new case -> the answers that share it
        calls: dict[_Case, Call] = {}
        questions = repeat(None, len(answers)) if prompts is None else prompts
        for index, (answer, gold, source, prompt) in enumerate(
            zip(answers, golds, data_sources, questions, strict=True)
        ):
            grader = grader_of(source, self.config.modes)
            extracted = grader.extract(answer)
            case = _Case(extracted, gold, source, id(prompt) if grader.is_own else 0)
            if extracted is None:
                verdicts[index] = Verdict(kind="unparsable", detail=grader.missing)
            elif not grader.in_worker:
                verdicts[index] = grader.judge(extracted, gold)
            elif case in self._cache:
                self._cache.move_to_end(case)
                verdicts[index] = self._cache[case]
            else:
                waiting.setdefault(case, []).append(index)
                question = ("", {}) if prompt is None else (prompt.text, prompt.extra_info)
                calls[case] = (grader.judge, extracted, gold, *(question if grader.is_own else ()))

        cases = list(waiting)
        num_done = len(answers) - sum(len(indices) for indices in waiting.values())

        def take(case_index: int, verdict: Verdict) -> None:
            nonlocal num_done
            case = cases[case_index]
            for index in waiting[case]:
                verdicts[index] = verdict
            if verdict.kind in CACHED_KINDS and len(case.answer) <= MAX_ANSWER_CHARS and not case.prompt:
                self._cache[case] = verdict
                if len(self._cache) > CACHE_SIZE:
                    self._cache.popitem(last=False)
            num_done += len(waiting[case])
            if on_progress is not None:
                on_progress(num_done, len(answers))

        self._pool.run(list(calls.values()), self.config.deadline_s, take)
        if on_progress is not None and not cases:
            on_progress(num_done, len(answers))
        return verdicts

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()


def judge_answers(
    answers: Sequence[str],
    golds: Sequence[str],
    data_sources: Sequence[str],
    deadline_s: float = 5.0,
    workers: int = 2,
) -> list[Verdict]:
    """Verdicts of the answers' texts, in order, from a pool that lives for this call only."""
    with Judge(VerdictConfig(workers=workers, deadline_s=deadline_s)) as judge:
        return judge.judge_answers(answers, golds, data_sources)
