"""A run's memory: one line a step on the terminal, metrics.jsonl, rollouts.jsonl, and the report page.

The training loop hands over metrics, judged groups and evaluations; the run folder and the terminal get them:

    recipe.toml     the resolved recipe
    metrics.jsonl   one record a step or evaluation; NaN and infinity are null
    rollouts.jsonl  a few answers of each, to be read by people
    report.html     the page, replaced as a whole (never half-written) at every evaluation and now and then between
    tensorboard/, wandb/    what the trackers write, if observe.trackers names any

Called by train and evaluate, on the driver only.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from megatron_nft.config import Config, RecipeError, to_toml
from megatron_nft.observe.answers import PageAnswers, Source, choose_answers
from megatron_nft.observe.html import replace_text, write_page
from megatron_nft.observe.metrics import check_names, count_by_correct_rate, rollout_metrics
from megatron_nft.observe.records import Lines, keep_records, read_records, read_step_reports
from megatron_nft.observe.terminal import Progress, accuracy_rows, closing_table, evaluation_line, step_line
from megatron_nft.observe.trackers import Trackers
from megatron_nft.types import RolloutGroup, StepReport

FILES = ("recipe.toml", "metrics.jsonl", "rollouts.jsonl", "report.html")
PAGE_EVERY_S = 120.0  # so that a run without evaluations has a page to look at, too
ETA_STEPS = 20  # the ETA follows the latest steps: answers grow longer, and the first step is slow


class Report:
    """Records what the loop reports, in a run folder that is there. Every metric name must be in observe.metrics."""

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
        self._stream = stream if stream is not None else sys.stdout
        self._dir = config.run_dir
        self._metrics_file, self._rollouts_file = _open_folder(config)
        self._trouble = ""  # with the disk, that has been told
        self._minutes_before = 0.0  # of earlier attempts
        self._page_written = self._start = time.perf_counter()
        self._step_ends: deque[float] = deque(maxlen=ETA_STEPS + 1)
        self._open = 0  # which step is open
        self._metrics: dict[str, float] | None = None  # of the open step
        self._groups: list[RolloutGroup] = []  # of the open step
        self._is_trained = False  # the open step
        self._loose: dict[str, float] = {}  # stage times outside a step, for the next evaluation's record
        self._progress: Progress | None = None
        self._closed = False
        self._read_back()  # what an earlier attempt has recorded

    def announce(self, line: str) -> None:
        """Prints a plain line."""
        if self._progress is not None:
            self._progress.clear()
        print(line, file=self._stream, flush=True)

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
        self._metrics_file, self._rollouts_file = _open_for_appending(self._dir)
        self._read_back()
        if record is not None and not any(known.kind == "step" and known.step == step for known in self._records):
            self._append(self._metrics_file, record)
            self._read_back()
        self._trackers.begin(self._records)

    def _read_back(self) -> None:
        self._records = read_step_reports(self._dir / "metrics.jsonl")
        self._page_answers = PageAnswers()
        for _, answers in groupby(read_records(self._dir / "rollouts.jsonl"), key=lambda r: (r["step"], r["source"])):
            self._page_answers.add(list(answers))

    def has_evaluation(self, step: int) -> bool:
        """Whether the run has evaluated after this step, in this attempt or an earlier one."""
        return any(record.kind == "evaluation" and record.step == step for record in self._records)

    def count_earlier(self, minutes: float) -> None:
        """Adds what earlier attempts have taken to `minutes`."""
        self._minutes_before = minutes

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
            self._metrics, self._groups = None, []
        if time.perf_counter() - self._page_written > PAGE_EVERY_S:
            self._write_page("running")

    def trained(self) -> None:
        """The open step has changed the actor: from here on a stop saves this step, not the one before."""
        self._is_trained = True

    def so_far(self, step: int) -> dict[str, Any] | None:
        """The record that the open step would leave if it ended now; None if it is another one."""
        if self._metrics is None or self._open != step:
            return None
        metrics = self._metrics | {"train/step": step, "train/updates": self._count_updates(step)}
        rates = tuple(count_by_correct_rate(self._groups)) if self._groups else ()
        if self._groups:
            metrics |= {name: _number(value) for name, value in rollout_metrics(self._groups).items()}
        return _line(step, "step", metrics, groups_by_correct_rate=rates)

    def _end_step(self, step: int, start: float) -> None:
        end = time.perf_counter()
        self._step_ends.append(end)
        if self._groups:
            self.add(rollout_metrics(self._groups))
        self.add({"time/step_s": end - start, "train/step": step, "train/updates": self._count_updates(step)})
        self._add_throughput()
        rates = tuple(count_by_correct_rate(self._groups)) if self._groups else ()
        self._write_record(step, "step", self._metrics, groups_by_correct_rate=rates)
        self.announce(step_line(step, self._config.train, self._metrics, self._eta_s(step)))

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Progress]:
        """Times a stage as time/<name>_s and shows its progress. Entered again in the same step, its times add up.

        Outside a step, the time goes to the next evaluation's record.
        """
        metric = f"time/{name}_s"
        check_names([metric])
        times = self._loose if self._metrics is None else self._metrics
        outer, self._progress = self._progress, Progress(self._stream, name, total, unit)
        start = time.perf_counter()
        try:
            yield self._progress
        finally:
            times[metric] = times.get(metric, 0.0) + time.perf_counter() - start
            self._progress.clear()
            self._progress = outer

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
            number = _number(value)
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
        numbers = self._loose | {name: _number(value) for name, value in metrics.items()}
        numbers |= {"train/step": step, "train/updates": self._updates_after(step)}
        self._loose = {}
        first = next((r.metrics for r in self._records if r.kind == "evaluation"), {})
        self._write_record(step, "evaluation", numbers, benchmarks={k: dict(v) for k, v in (benchmarks or {}).items()})
        self.announce(evaluation_line(step, numbers, first))
        self._write_answers(step, "evaluation", samples)
        self._write_page("running")

    def close(self, verdict: str) -> None:
        """Writes the page for the last time and prints where everything is; later calls do nothing.

        Args:
            verdict: "done", "interrupted", or "failed: ..." with the reason.
        """
        if self._closed:
            return
        self._closed = True
        self._write_page(verdict)
        self._metrics_file.close()
        self._rollouts_file.close()
        self._trackers.close()
        self._pass_on_messages()
        rows = {"run": f"{self._config.run.name}: {verdict}"}
        rows |= accuracy_rows(self._records)
        rows["steps"] = f"{sum(r.kind == 'step' for r in self._records)} of {self._config.train.steps}"
        rows["minutes"] = f"{self.minutes:.1f}"
        rows |= {name.partition(".")[0]: str(self._dir / name) for name in FILES}
        self.announce(closing_table(rows))

    def _add_throughput(self) -> None:
        """Derives perf/ from tokens and stage times, unless the caller has recorded it."""
        m = self._metrics or {}
        rollout_tokens = m.get("rollout/answers", 0) * m.get("rollout/answer_tokens_mean", 0)
        for name, tokens, stage_s in (
            ("perf/rollout_tokens_per_s", rollout_tokens, m.get("time/rollout_s", 0.0)),
            ("perf/train_tokens_per_s", m.get("actor/tokens", 0), m.get("time/train_s", 0.0)),
        ):
            if name not in m and tokens and stage_s:
                self.add({name: tokens / stage_s})

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
        line = _line(step, kind, metrics, **more)
        record = StepReport(step=step, kind=kind, time=line["time"], metrics=dict(metrics), **more)
        self._records.append(record)
        self._append(self._metrics_file, line)
        self._trackers.add(record)
        self._pass_on_messages()

    def _write_answers(self, step: int, source: Source, groups: Sequence[RolloutGroup]) -> None:
        count, seed = self._config.observe.rollouts_per_step, self._config.run.seed
        answers = choose_answers(groups, count, step=step, source=source, seed=seed)
        for answer in answers:
            self._append(self._rollouts_file, answer)
        self._page_answers.add(answers)

    def _append(self, file: Lines, record: Mapping[str, object]) -> None:
        """A disk that is full is no reason to lose a run: what it has no room for is written once it has."""
        if (trouble := file.append(record)) and trouble != self._trouble:
            self.announce(f"{file.path.name} waits for the disk: {trouble}")
        self._trouble = trouble

    def _write_page(self, verdict: str) -> None:
        self._page_written = time.perf_counter()
        try:
            write_page(
                self._dir / "report.html",
                config=self._config,
                verdict=verdict,
                minutes=self.minutes,
                records=self._records,
                answers=self._page_answers.records,
            )
        except OSError as error:  # metrics.jsonl has everything; a page is no reason to lose a run
            self.announce(f"report.html was not written: {error}")


def _open_folder(config: Config) -> tuple[Lines, Lines]:
    """Writes recipe.toml, and opens metrics.jsonl and rollouts.jsonl for appending."""
    folder = config.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "recipe.toml", to_toml(config))
        return _open_for_appending(folder)
    except OSError as error:
        raise RecipeError(
            f"can't write to the run folder {folder}: {error}; set run.dir to a writable folder"
        ) from None


def _open_for_appending(folder: Path) -> tuple[Lines, Lines]:
    return Lines(folder / "metrics.jsonl"), Lines(folder / "rollouts.jsonl")


def _line(step: int, kind: str, metrics: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """Of metrics.jsonl."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {"step": step, "kind": kind, "time": now, **finite, **more}


def _number(value: float) -> float:
    """A plain int or float out of Python's, numpy's or torch's."""
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)
