"""A run's held-out accuracy: after a step, or of a step's weights during the next.

All answers, greedy and sampled, of all benchmarks, are one queue, with one tail. In the background the
engines evaluate what they hold, the weights of step N: where they have GPUs of their own after the rollouts of step
N + 1, while the actor trains and they would idle; where they share the actor's, beside those rollouts (groups/source.py
asks for both), and only the grading comes after. The answers' seeds are the prompts', so they are the same ones. Called
by train.py.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron_nft.cluster.stream import EnginesEmpty, stream_answers
from megatron_nft.config import Config, RecipeError
from megatron_nft.data.benchmarks import Benchmark, prompts_of
from megatron_nft.groups.source import GroupSource
from megatron_nft.observe.report import Report
from megatron_nft.rollout.api import Request, Sampling, requests_of
from megatron_nft.run.held_out_accuracy import HeldOut, benchmark_of, held_out_of
from megatron_nft.types import Prompt, RolloutGroup
from megatron_nft.verdict.judge import Judge

LOOK_S = 30.0
"""Between two looks at whoever an evaluation waits for."""


class HeldOutEvaluation:
    """Evaluates on a run's held-out prompts and tells the report."""

    def __init__(
        self,
        config: Config,
        engines: Any,
        judge: Judge,
        benchmarks: Sequence[Benchmark],
        report: Report,
        *,
        refill: Callable[[], Any],
        in_background: bool,
    ) -> None:
        """
        Args:
            refill: gives engines that were started again the actor's weights.
        """
        self._config, self._engines, self._judge, self._report = config, engines, judge, report
        self._benchmarks, self._refill, self._in_background = benchmarks, refill, in_background
        self._due: int | None = None  # step whose weights wait for an evaluation in the background
        self._answers: dict[int, RolloutGroup] | None = None  # to its requests, which the rollouts' source has
        self._running: _Background | None = None

    def evaluate(self, step: int) -> None:
        """At once; or, if it may be in the background, after the next step's rollouts, at `begin_due`."""
        if not self._benchmarks:
            return
        if self._in_background and step < self._config.train.steps:
            self._due = step
            return
        with self._report.stage("evaluate", total=len(prompts_of(self._benchmarks)), unit="prompts") as progress:
            result = evaluate(
                self._engines,
                self._judge,
                self._benchmarks,
                self._config,
                on_progress=progress.update,
                refill=self._refill,
            )
        self._report.add_evaluation(step, result.metrics, result.samples, result.benchmarks)

    def ask_due(self, source: GroupSource) -> None:
        """Before a step's rollouts: where the engines sleep after them, the evaluation that is due is asked beside."""
        if self._due is not None and self._config.is_colocated:
            self._answers = source.ask_beside(requests_to(prompts_of(self._benchmarks), self._config))

    def begin_due(self) -> None:
        """After a step's rollouts: starts the evaluation that is due, if one is, or what is left of it. Until `finish`,
        engines (unless they have answered) and judge belong to it."""
        if self._due is not None:
            step, self._due = self._due, None
            answers, self._answers = self._answers, None
            # Without `refill`: the actor has newer weights by now.
            self._running = _Background(
                step, lambda: evaluate(self._engines, self._judge, self._benchmarks, self._config, answers=answers)
            )

    def finish(self, while_waiting: Callable[[], object] = lambda: None) -> None:
        """Waits for the evaluation in the background, and reports it. None is due afterwards.

        Args:
            while_waiting: is called now and then; it ends engines that the evaluation would wait for in vain.

        Raises:
            Exception: what ended the evaluation; where no engine is left with weights, it is left out, with a line.
        """
        self._due = self._answers = None
        if (running := self._running) is None:
            return
        with self._report.stage("evaluate"):
            while not running.wait(LOOK_S):
                while_waiting()
        self._running = None
        try:
            result = running.result()
        except EnginesEmpty as error:
            self._report.announce(f"evaluation at step {running.step} is left out: {error}")
            return
        metrics = result.metrics | {"time/evaluate_s": running.seconds}
        self._report.add_evaluation(running.step, metrics, result.samples, result.benchmarks)


class _Background:
    """An evaluation in a thread, a daemon: a run that ends does not wait for it."""

    def __init__(self, step: int, work: Callable[[], HeldOut]) -> None:
        self.step, self.seconds, self._work = step, 0.0, work
        self._result: HeldOut | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"evaluation at step {step}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is over."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def result(self) -> HeldOut:
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        start = time.perf_counter()
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        self.seconds = time.perf_counter() - start


def evaluate(
    engines: Any,
    judge: Judge,
    benchmarks: Sequence[Benchmark],
    config: Config,
    *,
    answers: Mapping[int, RolloutGroup] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    refill: Callable[[], Any] | None = None,
) -> HeldOut:
    """Has `requests_to` the benchmarks' prompts answered; grades; averages.

    Args:
        answers: to those requests, by their ids, where there are any already.

    Raises:
        EnginesEmpty: engines died, and there is no `refill` to give them weights.
    """
    prompts = prompts_of(benchmarks)
    requests = requests_to(prompts, config)
    if answers is None:
        answers = {}
        for request_id, group in stream_answers(engines, requests, config.rollout, refill=refill):
            answers[request_id] = group
            if on_progress is not None:
                on_progress(len(answers), len(requests))
    judged = judge.judge([answers[request.request_id] for request in requests])
    places = {prompt.prompt_id: place for place, prompt in enumerate(prompts)}
    num_sampled = len(requests) - len(prompts) * config.evaluate.greedy
    sampled, greedy = (
        sorted(groups, key=lambda group: places[group.prompt.prompt_id])
        for groups in (judged[:num_sampled], judged[num_sampled:])
    )
    return held_out_of(benchmarks, greedy, sampled, config.run.seed)


def requests_to(prompts: Sequence[Prompt], config: Config) -> list[Request]:
    """What an evaluation asks: so many sampled answers to a prompt as `evaluate.samples_of` says of its benchmark, or
    else `evaluate.samples`, and with `evaluate.greedy` a greedy one. Many answers and long prompts first, since they
    take longest, and greedy answers last; with ids below 0, which no rollout has.

    The sampled answers have the same seed in every evaluation of a run, so evaluations differ by the weights only.
    """
    by_count: dict[int, list[Prompt]] = {}
    longest_first = sorted(prompts, key=lambda prompt: -len(prompt.token_ids_P))
    for prompt in longest_first:
        if count := config.evaluate.samples_of.get(benchmark_of(prompt), config.evaluate.samples):
            by_count.setdefault(count, []).append(prompt)
    requests = []
    for count, asked in sorted(by_count.items(), key=lambda pair: -pair[0]):
        requests += requests_of(asked, evaluation_sampling(config, count))
    if config.evaluate.greedy:
        longest = config.rollout.max_answer_tokens
        requests += requests_of(
            longest_first, Sampling(group_size=1, temperature=0.0, max_answer_tokens=longest, seed=0)
        )
    return [replace(request, request_id=-1 - place) for place, request in enumerate(requests)]


def check_samples_of(config: Config, benchmarks: Sequence[Benchmark]) -> None:
    """Raises RecipeError if evaluate.samples_of names none of the benchmarks, or one would not be asked at all."""
    names, settings = [benchmark.name for benchmark in benchmarks], config.evaluate
    for name in settings.samples_of:
        if name not in names:
            raise RecipeError(
                f"evaluate.samples_of names {name!r}, which is no benchmark here: "
                f"{', '.join(names) or 'data.held_out is empty'}"
            )
    unasked = [name for name in names if name not in settings.samples_of]
    if unasked and not settings.samples and not settings.greedy:
        raise RecipeError(
            f"evaluate.greedy = false and evaluate.samples = 0 leave nothing to measure of {', '.join(unasked)}; set "
            "one of them, or name it in evaluate.samples_of"
        )


def evaluation_sampling(config: Config, num_samples: int) -> Sampling:
    """How an evaluation samples so many answers to a prompt."""
    return Sampling(
        group_size=num_samples,
        temperature=config.evaluate.temperature,
        top_p=config.evaluate.top_p,
        max_answer_tokens=config.rollout.max_answer_tokens,
        seed=config.run.seed,
    )
