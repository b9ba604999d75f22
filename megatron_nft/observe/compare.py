"""Several runs on one page: their curves over each other, results, answers to the same problems, settings that differ.

Run folders come in (metrics.jsonl, rollouts.jsonl and recipe.toml); the page goes out, as
self-contained as a run's own (html.py), with the same style and charts. Called by report.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_nft.config import flat_settings
from megatron_nft.observe.answers import AnswerRecord, shortened
from megatron_nft.observe.charts import sections
from megatron_nft.observe.html import RELOAD_S, fill_template
from megatron_nft.observe.records import read_records, read_step_reports
from megatron_nft.observe.series import columns, with_axes
from megatron_nft.types import StepReport

IGNORED = ("run.name", "run.dir", "run.overwrite")
"""Settings that always differ, or say nothing about the result."""
MOST = 40
"""Problems whose answers are shown."""
READ = ("step", "answer", "verdict", "detail", "rule", "truncated", "num_tokens", "correct_rate", "ground_truth")
"""Of an answer, for the page."""


class RunFolderError(ValueError):
    """A folder is not that of a run."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run has left."""

    label: str
    recipe: dict[str, Any]  # "section.key" -> value
    records: list[StepReport]
    answers: list[AnswerRecord] = field(default_factory=list)  # held-out ones, oldest first


def read_run(folder: Path) -> RunRecord:
    """A run, finished or not.

    Raises:
        RunFolderError: the folder has no metrics.jsonl or no recipe.toml, or one of them is damaged.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such folder; give those of runs, such as runs/quickstart")
    try:
        settings = flat_settings((folder / "recipe.toml").read_text(encoding="utf-8"))
        records = read_step_reports(folder / "metrics.jsonl")
        answers = _held_out(folder / "rollouts.jsonl")
    except FileNotFoundError as error:
        raise RunFolderError(f"{folder}: no run's folder, it has no {Path(error.filename).name}") from None
    except (ValueError, KeyError) as error:
        raise RunFolderError(f"{folder}: recipe.toml or metrics.jsonl is damaged: {error}") from None
    return RunRecord(
        label=str(settings.get("run.name", folder.name)), recipe=settings, records=records, answers=answers
    )


def _held_out(path: Path) -> list[AnswerRecord]:
    if not path.is_file():
        return []
    return [record for record in read_records(path) if record["source"] == "evaluation"]


def differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Setting -> its value in each run (None where it isn't set), of the settings that differ."""
    names = dict.fromkeys(name for run in runs for name in run.recipe if name not in IGNORED)
    values = {name: [run.recipe.get(name) for run in runs] for name in names}
    return {name: its for name, its in values.items() if any(value != its[0] for value in its)}


def answers_to_compare(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Problems that several runs have kept an answer to, each with the latest of every run that has: at most MOST."""
    latest = [{answer["prompt_id"]: answer for answer in run.answers} for run in runs]
    names = dict.fromkeys(name for its in latest for name in its)
    shared = [name for name in names if sum(name in its for its in latest) > 1]
    return [
        {
            "prompt_id": name,
            "prompt": shortened(next(its[name]["prompt"] for its in latest if name in its)),
            "ground_truth": next(its[name]["ground_truth"] for its in latest if name in its),
            "answers": [_to_read(its[name]) if name in its else None for its in latest],
        }
        for name in shared[:MOST]
    ]


def _to_read(answer: AnswerRecord) -> AnswerRecord:
    return {name: shortened(answer.get(name)) for name in READ}


def render_comparison(runs: Sequence[RunRecord], *, reloads: bool = False) -> str:
    """The page as text; it reloads itself if it is served while a run goes on."""
    labels = [run.label for run in runs]
    unique = [f"{label} ({i + 1})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    methods = {str(run.recipe.get("algorithm.name", "nft")) for run in runs}
    data: Mapping[str, Any] = {
        "runs": [
            {
                "label": label,
                "steps": columns([r for r in with_axes(run.records) if r.kind == "step"]),
                "evaluations": columns([r for r in with_axes(run.records) if r.kind == "evaluation"]),
            }
            for label, run in zip(unique, runs, strict=True)
        ],
        "sections": sections(
            methods.pop() if len(methods) == 1 else "",
            {name for run in runs for r in run.records for name in r.metrics},
        ),
        "answers": answers_to_compare(runs),
        "reload_s": RELOAD_S if reloads else 0,
        "differences": {
            name: ["" if v is None else str(v) for v in values] for name, values in differences(runs).items()
        },
    }
    return fill_template("compare.html", ("style.css", "charts.js", "specs.js", "compare.js"), data)
