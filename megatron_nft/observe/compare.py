"""Several runs on one page: their curves over each other, their results side by side, and the settings that differ.

Run folders come in (metrics.jsonl and recipe.toml); the page goes out, as self-contained as a run's own (html.py), with
the same style and charts. Called by report.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_nft.config import flat_settings
from megatron_nft.observe.html import fill_template
from megatron_nft.observe.metrics import METRICS
from megatron_nft.observe.records import read_step_reports
from megatron_nft.observe.series import columns
from megatron_nft.types import StepReport

IGNORED = ("run.name", "run.dir", "run.overwrite")
"""Settings that always differ, or say nothing about the result."""


class RunFolderError(ValueError):
    """A folder is not that of a run."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run has left."""

    label: str
    recipe: dict[str, Any]  # "section.key" -> value
    records: list[StepReport]


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
    except FileNotFoundError as error:
        raise RunFolderError(f"{folder}: no run's folder, it has no {Path(error.filename).name}") from None
    except (ValueError, KeyError) as error:
        raise RunFolderError(f"{folder}: recipe.toml or metrics.jsonl is damaged: {error}") from None
    return RunRecord(label=str(settings.get("run.name", folder.name)), recipe=settings, records=records)


def differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Setting -> its value in each run (None where it isn't set), of the settings that differ."""
    names = dict.fromkeys(name for run in runs for name in run.recipe if name not in IGNORED)
    values = {name: [run.recipe.get(name) for run in runs] for name in names}
    return {name: its for name, its in values.items() if any(value != its[0] for value in its)}


def render_comparison(runs: Sequence[RunRecord]) -> str:
    """The page as text."""
    labels = [run.label for run in runs]
    unique = [f"{label} ({i + 1})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    data: Mapping[str, Any] = {
        "runs": [
            {
                "label": label,
                "steps": columns([r for r in run.records if r.kind == "step"]),
                "evaluations": columns([r for r in run.records if r.kind == "evaluation"]),
            }
            for label, run in zip(unique, runs, strict=True)
        ],
        "metrics": {m.name: {"unit": m.unit, "meaning": m.meaning} for m in METRICS.values()},
        "differences": {
            name: ["" if v is None else str(v) for v in values] for name, values in differences(runs).items()
        },
    }
    return fill_template("compare.html", ("style.css", "charts.js", "compare.js"), data)
