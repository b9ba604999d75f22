"""Rollouts -> verdicts. The driver's `judge` stage, and the benchmarks' grader.

The data_source of a prompt picks its grader (graders.py). Workers find the answers in the texts, a few texts at once,
and judge those that take no algebra (grading.py); of what is left each distinct answer goes to a worker on its own,
under its own deadline: the K answers of a group are mostly the same few. The driver reads no text. What the machine
failed to grade is graded once more, alone, when nothing else is. Verdicts of graders of one's own are not kept for
later: who knows what they depend on.
"""

import dataclasses
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

from megatron_nft.config import VerdictConfig
from megatron_nft.types import Prompt, RolloutGroup, Verdict
from megatron_nft.verdict.alternatives import judge_any
from megatron_nft.verdict.boxes import last_boxed
from megatron_nft.verdict.check import check_own_graders, own_graders
from megatron_nft.verdict.golds import GoldProblem, check_golds
from megatron_nft.verdict.graders import grader_named, mode_of
from megatron_nft.verdict.grading import Text, begin, opens_thought
from megatron_nft.verdict.math_answer import GOLD, MAX_ANSWER_CHARS, judge_math
from megatron_nft.verdict.own_grader import judge_own_batch, prepare
from megatron_nft.verdict.pool import PRELOAD, Call, GradingPool, JudgeError

CACHE_SIZE = 100_000  # verdicts, about 0.5 KB each
# A "timeout" or "error" may be the machine's fault: it holds for one call of the judge only.
CACHED_KINDS = ("right", "wrong", "unparsable")
WARM_UP_DEADLINE_S = 60.0
BATCH_CHARS, BATCH_TEXTS = 400_000, 64
"""Texts that a worker reads at once: their way there costs more than a task's, and some must be left for the others."""
READ_DEADLINE_S = 30.0
"""For a batch, whose reading is linear."""
GOLDS_AT_ONCE = 64
MOST_SPANS = 2_000
REGRADE_DEADLINES = 6
"""At most so many deadlines are spent on grading once more, one answer after the other."""

# (answer, ground truth, verdict): graders that return 0 for everything look like a weak model. No short cuts here.
KNOWN_ANSWERS = ((r"so \boxed{2\sqrt{2}}", r"\sqrt{8}", "right"), (r"so \boxed{3\sqrt{2}}", r"\sqrt{8}", "wrong"))


class _Case(NamedTuple):
    """Answers that are one case have one verdict."""

    answer: str  # extracted; for a grader of one's own the whole text
    gold: str
    mode: str
    question: str
    prompt: int  # for a grader of one's own: id() of the Prompt, of which it gets extra_info


class Judge:
    """Grades answers in a warm pool of processes. A context manager; threads that grade take turns.

    Args:
        pool: with a GradingPool's methods, in place of one in this process (cluster/graders.py); the judge closes it.
    """

    def __init__(self, config: VerdictConfig, pool: Any = None):
        self.config = config
        self._pool = pool or GradingPool(
            config.workers, partial(prepare, own_graders(config)), PRELOAD, config.memory_gib
        )
        self._cache: OrderedDict[_Case, Verdict] = OrderedDict()
        self._turn = Lock()
        self._spans: deque[tuple[str, float, float]] = deque(maxlen=MOST_SPANS)

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
            start = time.time()
            verdicts = self.judge_answers(
                [rollout.text for _, rollout in members],
                [prompt.ground_truth for prompt, _ in members],
                [prompt.data_source for prompt, _ in members],
                on_progress,
                [prompt for prompt, _ in members],
            )
            self._spans.append(("grade", start, time.time()))
        arriving = iter(verdicts)
        return [dataclasses.replace(group, verdicts=tuple(next(arriving) for _ in group.rollouts)) for group in groups]

    def take_spans(self) -> list[tuple[str, float, float]]:
        """When it has graded since the last call: what, from, to, in time of day."""
        return [self._spans.popleft() for _ in range(len(self._spans))]

    def gold_problems(self, prompts: Sequence[Prompt]) -> list[GoldProblem]:
        """The prompts' ground truths that their modes can't take: no answer in another notation would be right."""
        rows = [(p.prompt_id, p.ground_truth, mode_of(p.data_source, self.config.modes)) for p in prompts]
        batches = [rows[place : place + GOLDS_AT_ONCE] for place in range(0, len(rows), GOLDS_AT_ONCE)]
        with self._turn:
            results = self._pool.run([(check_golds, batch) for batch in batches], READ_DEADLINE_S)
        problems: list[GoldProblem] = []
        for batch, found in zip(batches, results, strict=True):
            if isinstance(found, Verdict):  # one of them takes for ever to read
                reason = f"one of the {len(batch)} from here on: {found.detail}"
                row, gold, mode = batch[0]
                problems.append(GoldProblem(row=row, gold=gold, mode=mode, reason=reason, taken_by=""))
            else:
                problems += found
        return problems

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
        if not len(answers) == len(golds) == len(data_sources):
            raise ValueError("one of answers, golds and data_sources is longer than another")
        modes = [mode_of(source, self.config.modes) for source in data_sources]
        verdicts: list[Verdict | None] = [None] * len(answers)
        progress = _Progress(len(answers), on_progress)
        extracted = self._read(answers, golds, modes, prompts)
        waiting: dict[_Case, list[int]] = {}  # new case -> the answers that share it
        calls: dict[_Case, Call] = {}
        for index, found in enumerate(extracted):
            if isinstance(found, Verdict):
                verdicts[index] = found
                continue
            prompt = None if prompts is None else prompts[index]
            case, call = _case(found, golds[index], modes[index], prompt)
            if case in self._cache:
                self._cache.move_to_end(case)
                verdicts[index] = self._cache[case]
            else:
                waiting.setdefault(case, []).append(index)
                calls[case] = call
        progress.add(len(answers) - sum(len(indices) for indices in waiting.values()))
        cases = list(waiting)
        tasks = self._tasks(cases, calls)
        results = self._pool.run(
            [call for call, _ in tasks],
            self.config.deadline_s,
            lambda place, _: progress.add(sum(len(waiting[case]) for case in tasks[place][1])),
        )
        graded: dict[_Case, Verdict] = {}
        for (_, its_cases), result in zip(tasks, results, strict=True):
            graded |= zip(its_cases, [result] * len(its_cases) if isinstance(result, Verdict) else result, strict=True)
        for case, verdict in self._regraded(calls, graded).items():
            for index in waiting[case]:
                verdicts[index] = verdict
            self._keep(case, verdict)
        return verdicts

    def _tasks(self, cases: Sequence[_Case], calls: dict[_Case, Call]) -> list[tuple[Call, list[_Case]]]:
        """One call a case; one a batch for graders that take batches."""
        tasks: list[tuple[Call, list[_Case]]] = []
        batches: dict[str, list[_Case]] = {}
        for case in cases:
            if case.mode in self.config.batches:
                batches.setdefault(case.mode, []).append(case)
            else:
                tasks.append((calls[case], [case]))
        for mode, its_cases in batches.items():
            size = self.config.batches[mode]
            for place in range(0, len(its_cases), size):
                batch = its_cases[place : place + size]
                tasks.append(((judge_own_batch, mode, [calls[case][1:] for case in batch]), batch))
        return tasks

    def _read(
        self, answers: Sequence[str], golds: Sequence[str], modes: Sequence[str], prompts: Sequence[Prompt] | None
    ) -> list[Verdict | str]:
        """The texts' answers, or their verdicts where these take no algebra; by the workers."""
        found: list[Any] = list(answers)
        batches: list[list[int]] = [[]]
        size = 0
        for index, mode in enumerate(modes):
            if grader_named(mode).is_own:
                continue  # it gets the text
            size += len(answers[index])
            if batches[-1] and (size > BATCH_CHARS or len(batches[-1]) == BATCH_TEXTS):
                batches.append([])
                size = len(answers[index])
            batches[-1].append(index)
        opens = [False] * len(answers) if prompts is None else [opens_thought(prompt) for prompt in prompts]
        calls = [
            (begin, [Text(answers[i], golds[i], modes[i], opens[i]) for i in batch], self.config.thoughts)
            for batch in batches
            if batch
        ]
        results = self._pool.run(calls, READ_DEADLINE_S)
        for batch, result in zip(batches if calls else [], results, strict=True):
            for place, index in enumerate(batch):
                found[index] = result if isinstance(result, Verdict) else result[place]
        return found

    def _regraded(self, calls: dict[_Case, Call], graded: dict[_Case, Verdict]) -> dict[_Case, Verdict]:
        """Once more what the machine failed at: a busy node, a worker that died, a service that didn't answer."""
        until = time.monotonic() + REGRADE_DEADLINES * self.config.deadline_s
        for case, verdict in graded.items():
            if verdict.is_graded or verdict.rule == GOLD:
                continue
            if time.monotonic() + self.config.deadline_s > until:
                break
            is_batch = case.mode in self.config.batches
            call = (judge_own_batch, case.mode, [calls[case][1:]]) if is_batch else calls[case]
            (result,) = self._pool.run([call], self.config.deadline_s)
            graded[case] = result if isinstance(result, Verdict) else result[0]
        return graded

    def _keep(self, case: _Case, verdict: Verdict) -> None:
        if verdict.kind in CACHED_KINDS and len(case.answer) <= MAX_ANSWER_CHARS and not case.prompt:
            self._cache[case] = verdict
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()


class _Progress:
    """Answers graded of all, told as verdicts arrive."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._tell = 0, total, on_progress

    def add(self, count: int) -> None:
        self._done += count
        if self._tell is not None:
            self._tell(self._done, self._total)


def _case(answer: str, gold: str, mode: str, prompt: Prompt | None) -> tuple[_Case, Call]:
    """An answer that a worker is to judge, and how."""
    grader = grader_named(mode)
    question = "" if prompt is None else prompt.text
    if grader.is_own:
        case = _Case(answer, gold, mode, question, id(prompt))
        return case, (grader.judge, answer, gold, question, {} if prompt is None else prompt.extra_info)
    if grader.is_math:
        return _Case(answer, gold, mode, question, 0), (judge_any, grader.judge, answer, gold, question)
    return _Case(answer, gold, mode, "", 0), (judge_any, grader.judge, answer, gold)


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
