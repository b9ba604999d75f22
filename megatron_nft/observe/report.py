"""A run's memory: one line a step on the terminal, metrics.jsonl, rollouts.jsonl, and the report page.

The training loop hands over metrics, judged groups and evaluations; the run folder and the terminal get them:

    recipe.toml     the resolved recipe
    metrics.jsonl   one record a step or evaluation; NaN and infinity are null
    rollouts.jsonl  a few answers of each, to be read by people
    timeline/       who worked when, a trace file a step, of the newest steps
    report.html     the page, replaced as a whole (never half-written) at every evaluation and now and then between
    tensorboard/, wandb/    what the trackers write, if observe.trackers names any

Called by train and evaluate, on the driver only.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TextIO

from megatron_nft.config import Config
from megatron_nft.observe.answers import Source, add_strips, choose_answers
from megatron_nft.observe.closing import closing_rows
from megatron_nft.observe.metrics import check_names, count_by_correct_rate, rollout_metrics
from megatron_nft.observe.records import (
    Lines,
    keep_records,
    open_folder,
    open_for_appending,
    plain_number,
    read_step_reports,
    record_line,
)
from megatron_nft.observe.run_page import RunPage
from megatron_nft.observe.step_line import StepView
from megatron_nft.observe.terminal import Console, Progress, closing_table, latest_accuracy
from megatron_nft.observe.throughput import throughput
from megatron_nft.observe.timeline import Timeline
from megatron_nft.observe.trackers import Trackers
from megatron_nft.types import RolloutGroup, StepReport, TrainBatch

FILES = ("recipe.toml", "metrics.jsonl", "rollouts.jsonl", "report.html", "run.json")
PAGE_EVERY_S = 120.0  # so that a run without evaluations has a page to look at, too
ETA_STEPS = 20  # the ETA follows the latest steps: answers grow longer, and the first step is slow


class Report:
    """Records what the loop reports, in a run folder that is there. Every metric name must be in observe.metrics.

    Attributes:
        timeline: takes who works when.
        token_text: says a token as text, for people; None: nobody knows.
    """

    def __init__(self, config: Config, stream: TextIO | None = None):
        """
        Args:
            config: the resolved recipe; run_dir says where the files go.
            stream: where lines go, standard output by default.

        Raises:
            RecipeError: the folder can't be written, or a tracker lacks its package or account.
        """
        self._config = config
        self._trackers = Trackers(config)
        self._console = Console(stream if stream is not None else sys.stdout)
        self._dir = config.run_dir
        self._metrics_file, self._rollouts_file = open_folder(config)
        self._trouble = ""  # with the disk, that has been told
        self._minutes_before = 0.0  # of earlier attempts
        self._page_written = self._start = time.perf_counter()
        self._step_ends: deque[float] = deque(maxlen=ETA_STEPS + 1)
        self._open = 0  # which step is open
        self._metrics: dict[str, float] | None = None  # of the open step
        self._groups: list[RolloutGroup] = []  # of the open step
        self._is_trained = False  # the open step
        self._loose: dict[str, float] = {}  # stage times outside a step, for the next evaluation's record
        self._closed = False
        self.timeline = Timeline()
        self.token_text: Callable[[int], str] | None = None
        self._batch: TrainBatch | None = None  # of the open step
        self._page = RunPage(config, self.announce)
        self._page.begin()
        self._read_back()  # what an earlier attempt has recorded

    def announce(self, line: str) -> None:
        """Prints a plain line."""
        self._console.say(line)

    def rewind(self, step: int, record: Mapping[str, Any] | None = None) -> None:
        """Goes on from a checkpoint of this step: what is recorded up to it stays, the rest will come again.

        Args:
            record: `so_far` of the step, for a run that was killed before it ended.
        """
        self._step_ends.clear()
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            keep_records(self._dir / name, lambda record: record["step"] <= step)
        self._metrics_file.close()
        self._rollouts_file.close()
        self._metrics_file, self._rollouts_file = open_for_appending(self._dir)
        self._read_back()
        if record is not None and not any(known.kind == "step" and known.step == step for known in self._records):
            self._append(self._metrics_file, record)
            self._read_back()
        self._trackers.begin(self._records)

    def _read_back(self) -> None:
        self._records = read_step_reports(self._dir / "metrics.jsonl")
        self._page.read_back()

    def has_evaluation(self, step: int) -> bool:
        """Whether the run has evaluated after this step, in this attempt or an earlier one."""
        return any(record.kind == "evaluation" and record.step == step for record in self._records)

    def count_earlier(self, minutes: float) -> None:
        """Adds what earlier attempts have taken to `minutes`."""
        self._minutes_before = minutes
        self._page.begin(self.minutes)

    @property
    def minutes(self) -> float:
        """That the run has taken, with what earlier attempts contributed."""
        return self._minutes_before + (time.perf_counter() - self._start) / 60

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Times one step; at its end prints the step line and appends its record. A step cut short leaves one, too, if
        it has been trained: a checkpoint of it may follow. What is gone back on, `rewind` takes out again."""
        if self._metrics is not None:
            raise RuntimeError(f"step {step} begins inside another step")
        self._metrics, self._groups, self._is_trained = {}, [], False
        self._open = step
        start = time.perf_counter()
        if not self._step_ends:
            self._step_ends.append(start)
        try:
            yield
        except BaseException:
            if self._is_trained:
                self._end_step(step, start)
            raise
        else:
            self._end_step(step, start)
        finally:
            # A step that failed is the one whose answers somebody will want to read.
            self._write_answers(step, "train", self._groups)
            self._metrics, self._groups, self._batch = None, [], None
        if time.perf_counter() - self._page_written > PAGE_EVERY_S:
            self._write_page("running")

    def trained(self) -> None:
        """The open step has changed the actor: from here on a stop saves this step, not the one before."""
        self._is_trained = True

    def seconds(self, stage: str) -> float:
        """That a stage of the open step has taken so far."""
        return (self._metrics or {}).get(f"time/{stage}_s", 0.0)

    def so_far(self, step: int) -> dict[str, Any] | None:
        """The record that the open step would leave if it ended now; None if it is another one."""
        if self._metrics is None or self._open != step:
            return None
        metrics = self._metrics | {"train/step": step, "train/updates": self._count_updates(step)}
        rates = tuple(count_by_correct_rate(self._groups)) if self._groups else ()
        if self._groups:
            metrics |= {name: plain_number(value) for name, value in rollout_metrics(self._groups).items()}
        return record_line(step, "step", metrics, groups_by_correct_rate=rates)

    def _end_step(self, step: int, start: float) -> None:
        end = time.perf_counter()
        self._step_ends.append(end)
        if self._groups:
            self.add(rollout_metrics(self._groups))
        self.add({"time/step_s": end - start, "train/step": step, "train/updates": self._count_updates(step)})
        self.add(throughput(self._metrics, self._config, self.minutes))
        rates = tuple(count_by_correct_rate(self._groups)) if self._groups else ()
        self._write_record(step, "step", self._metrics, groups_by_correct_rate=rates)
        self._page.add_timeline(step, self.timeline.take(start, end))
        self._console.step(self._view(step))

    def _view(self, step: int) -> StepView:
        train = self._config.train
        return StepView(
            step=step,
            steps=train.steps,
            updates=train.steps * train.updates_per_step,
            metrics=self._metrics or {},
            accuracy=latest_accuracy(self._records),
            eta_s=self._eta_s(step),
            now=datetime.now(),
        )

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Progress]:
        """Times a stage as time/<name>_s and shows its progress. Entered again in the same step, its times add up.

        Outside a step, the time goes to the next evaluation's record.
        """
        metric = f"time/{name}_s"
        check_names([metric])
        times = self._loose if self._metrics is None else self._metrics
        progress, outer = self._console.begin(name, total, unit)
        start = time.perf_counter()
        try:
            yield progress
        finally:
            end = time.perf_counter()
            times[metric] = times.get(metric, 0.0) + end - start
            self.timeline.add("driver", name, start, end)
            self._console.end(progress, outer)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Records metrics of the open step.

        Raises:
            UnknownMetricError: a name is not public.
            ValueError: a metric already has another value in this step; reduce_metrics makes one of many.
        """
        if self._metrics is None:
            raise RuntimeError("report.add outside of `with report.step(...)`: there is no step to add to")
        check_names(metrics)
        for name, value in metrics.items():
            number = plain_number(value)
            if name in self._metrics and repr(self._metrics[name]) != repr(number):  # repr: NaN equals NaN
                raise ValueError(f"{name} = {number} was already recorded as {self._metrics[name]} in this step")
            self._metrics[name] = number

    def add_rollouts(self, groups: Sequence[RolloutGroup]) -> None:
        """Takes judged groups of the open step, mixed or not; once a sampling round, or all at once.

        At the step's end their rollout_metrics are recorded and a few answers go to rollouts.jsonl.
        """
        if self._metrics is None:
            raise RuntimeError("report.add_rollouts outside of `with report.step(...)`: there is no step to add to")
        self._groups += groups

    def add_batch(self, batch: TrainBatch) -> None:
        """Takes what the open step has trained on, for the log-probs of the answers that are kept."""
        self._batch = batch

    def add_evaluation(
        self,
        step: int,
        metrics: Mapping[str, float],
        samples: Sequence[RolloutGroup] = (),
        benchmarks: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Records an evaluation, inside a step or not: its own line, its own record, and a fresh report page.

        Args:
            samples: answers, of which some are kept to be read.
            benchmarks: the metrics of each file's prompts.
        """
        check_names(metrics)
        numbers = self._loose | {name: plain_number(value) for name, value in metrics.items()}
        numbers |= {"train/step": step, "train/updates": self._updates_after(step)}
        self._loose = {}
        first = next((r.metrics for r in self._records if r.kind == "evaluation"), {})
        self._write_record(step, "evaluation", numbers, benchmarks={k: dict(v) for k, v in (benchmarks or {}).items()})
        self._console.evaluation(step, numbers, first)
        self._write_answers(step, "evaluation", samples)
        self._write_page("running")

    def close(self, verdict: str, *, comes_again: bool = False) -> None:
        """Writes the page for the last time and prints where everything is; later calls do nothing.

        Args:
            verdict: "done", "interrupted", or "failed: ..." with the reason.
            comes_again: the same command would fail again.
        """
        if self._closed:
            return
        self._closed = True
        self._write_page(verdict)
        self._metrics_file.close()
        self._rollouts_file.close()
        self._trackers.close()
        self._pass_on_messages()
        rows = closing_rows(self._config, verdict, self._records, self.minutes, comes_again=comes_again)
        self._console.print(closing_table(rows, self._console.width))

    def _count_updates(self, step: int) -> int:
        """Optimizer updates at the end of the open step."""
        left_out = int((self._metrics or {}).get("actor/nonfinite_updates", 0))
        return self._updates_after(step - 1) + self._config.train.updates_per_step - left_out

    def _updates_after(self, step: int) -> int:
        """Optimizer updates by the end of a recorded step."""
        for record in reversed(self._records):
            if record.kind == "step" and record.step == step and "train/updates" in record.metrics:
                return int(record.metrics["train/updates"])
        return step * self._config.train.updates_per_step

    def _pass_on_messages(self) -> None:
        for message in self._trackers.take_messages():
            self.announce(message)

    def _eta_s(self, step: int) -> float:
        """From end to end of the latest steps, so that evaluations and checkpoints between them count."""
        per_step = (self._step_ends[-1] - self._step_ends[0]) / (len(self._step_ends) - 1)
        return per_step * max(self._config.train.steps - step, 0)

    def _write_record(self, step: int, kind: str, metrics: Mapping[str, float], **more: Any) -> None:
        line = record_line(step, kind, metrics, **more)
        record = StepReport(step=step, kind=kind, time=line["time"], metrics=dict(metrics), **more)
        self._records.append(record)
        self._append(self._metrics_file, line)
        self._trackers.add(record)
        self._pass_on_messages()

    def _write_answers(self, step: int, source: Source, groups: Sequence[RolloutGroup]) -> None:
        count, seed = self._config.observe.rollouts_per_step, self._config.run.seed
        answers = choose_answers(groups, count, step=step, source=source, seed=seed)
        add_strips(answers, groups, self._batch if source == "train" else None, self.token_text)
        for answer in answers:
            self._append(self._rollouts_file, answer)
        self._page.add_answers(answers)

    def _append(self, file: Lines, record: Mapping[str, object]) -> None:
        """A disk that is full is no reason to lose a run: what it has no room for is written once it has."""
        if (trouble := file.append(record)) and trouble != self._trouble:
            self.announce(f"{file.path.name} waits for the disk: {trouble}")
        self._trouble = trouble

    def _write_page(self, verdict: str) -> None:
        self._page_written = time.perf_counter()
        self._page.write(verdict, self.minutes, self._records)
