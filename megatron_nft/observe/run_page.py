"""A run's page, as long as the run writes it: its answers, its facts, the newest step's timeline; and how it stands.

Called by `observe.report`, and by the command `report`, for a page of what a folder has.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from megatron_nft.config import Config
from megatron_nft.observe.answers import AnswerRecord, PageAnswers
from megatron_nft.observe.facts import facts_of, write_state
from megatron_nft.observe.html import write_page
from megatron_nft.observe.records import read_records
from megatron_nft.observe.timeline import Span, rows_to_draw, write_trace
from megatron_nft.types import StepReport


class RunPage:
    """report.html, run.json and timeline/ of a run."""

    def __init__(self, config: Config, announce: Callable[[str], None]) -> None:
        self._config, self._announce, self._folder = config, announce, config.run_dir
        self._facts = facts_of(config)
        self._answers = PageAnswers()
        self._timeline: dict[str, Any] | None = None  # of the newest step

    def begin(self, minutes: float = 0.0) -> None:
        """The run is under way, whatever the folder says; and has been, with its earlier attempts, for so long."""
        try:
            write_state(self._folder, self._facts, "running", minutes, self._timeline)
        except OSError as error:
            self._announce(f"run.json was not written: {error}")

    def read_back(self) -> None:
        """The answers that the folder has, and no others."""
        self._answers = answers_of(self._folder)

    def add_answers(self, records: Sequence[AnswerRecord]) -> None:
        """Of one step or evaluation."""
        self._answers.add(records)

    def add_timeline(self, step: int, spans: Sequence[Span]) -> None:
        """Of a step that has ended."""
        self._timeline = rows_to_draw(step, spans)
        try:
            write_trace(self._folder, step, spans)
        except OSError as error:  # no reason to lose a run
            self._announce(f"the timeline of step {step} was not written: {error}")

    def write(self, verdict: str, minutes: float, records: Sequence[StepReport]) -> None:
        """The page as it is now."""
        try:
            write_page(
                self._folder / "report.html",
                config=self._config,
                verdict=verdict,
                minutes=minutes,
                records=records,
                answers=self._answers.records,
                facts=self._facts,
                timeline=self._timeline,
            )
            write_state(self._folder, self._facts, verdict, minutes, self._timeline)
        except OSError as error:  # metrics.jsonl has everything; a page is no reason to lose a run
            self._announce(f"report.html was not written: {error}")


def answers_of(folder: Path) -> PageAnswers:
    """A share of a run's rollouts.jsonl."""
    found = PageAnswers()
    for _, answers in groupby(read_records(folder / "rollouts.jsonl"), key=lambda r: (r["step"], r["source"])):
        found.add(list(answers))
    return found
