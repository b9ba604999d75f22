"""The report page: one self-contained HTML file that needs no network, on a phone or a desk, light or dark.

Records and sampled answers come in; the page goes out with them embedded as JSON, drawn by the scripts in page/. The
answers are a model's output and untrusted: no byte of them can end the JSON's script element, the scripts only ever set
them as text, and a content security policy forbids every request. Called by `observe.report`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from megatron_nft.config import Config, to_toml
from megatron_nft.observe.answers import AnswerRecord
from megatron_nft.observe.charts import sections
from megatron_nft.observe.evaluation_table import benchmark_rows, curve_ends, paper_rows, series_rows
from megatron_nft.observe.facts import facts_of
from megatron_nft.observe.metrics import METRICS, STAGES
from megatron_nft.observe.series import columns, correct_rates, with_axes
from megatron_nft.observe.whole_file import replace_text, script_json
from megatron_nft.types import StepReport

PAGE_FILES = ("style.css", "charts.js", "tables.js", "answers.js", "timeline.js", "specs.js", "page.js")
RELOAD_S = 15
"""Of a page that is served while its run lasts."""


def write_page(
    path: Path,
    *,
    config: Config,
    verdict: str,
    minutes: float,
    records: Sequence[StepReport],
    answers: Sequence[AnswerRecord],
    facts: Mapping[str, str] | None = None,
    timeline: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page so that `path` is at any time a whole page: the previous one or this one.

    Args:
        path: the file to replace.
        config: the resolved recipe.
        verdict: how the run stands: "running", "done", "interrupted", "failed: ...".
        minutes: wall time so far.
        records: all steps and evaluations so far, in order.
        answers: sampled answers to browse.
        facts: of the run (facts.py); None: those of this process.
        timeline: rows of the newest step (timeline.py).
    """
    page = render_page(
        config=config,
        verdict=verdict,
        minutes=minutes,
        records=records,
        answers=answers,
        facts=facts,
        timeline=timeline,
    )
    replace_text(path, page)


def render_page(
    *,
    config: Config,
    verdict: str,
    minutes: float,
    records: Sequence[StepReport],
    answers: Sequence[AnswerRecord],
    facts: Mapping[str, str] | None = None,
    timeline: Mapping[str, Any] | None = None,
    reloads: bool = False,
) -> str:
    """The page as text; `reloads` itself while the run lasts, if it is served."""
    records = with_axes(records)
    steps = [r for r in records if r.kind == "step"]
    evaluations = [r for r in records if r.kind == "evaluation"]
    measured = {name for r in records for name in r.metrics}
    data = {
        "run": {
            "name": config.run.name,
            "verdict": verdict,
            "minutes": minutes,
            "facts": dict(facts_of(config) if facts is None else facts),
            "reload_s": RELOAD_S if reloads and verdict == "running" else 0,
            "recipe": to_toml(config),
            "num_steps": steps[-1].step if steps else 0,
            "total_steps": config.train.steps,
            "samples": config.evaluate.samples,
            "max_answer_tokens": config.rollout.max_answer_tokens,
        },
        "metrics": {m.name: {"unit": m.unit, "meaning": m.meaning} for m in METRICS.values()},
        "stages": STAGES,
        "sections": sections(config.algorithm.name, measured),
        "timeline": timeline,
        "steps": columns(steps),
        "rates": correct_rates(steps),
        "evaluations": columns(evaluations),
        "benchmarks": {
            name: columns([replace(e, metrics=e.benchmarks.get(name, {})) for e in evaluations])
            for name in dict.fromkeys(name for e in evaluations for name in e.benchmarks)
        },
        "tables": [benchmark_rows(evaluations), paper_rows(evaluations), series_rows(evaluations)],
        "published": curve_ends(evaluations),
        "answers": answers,
    }
    return fill_template("template.html", PAGE_FILES, data)


def fill_template(name: str, names_of_parts: Sequence[str], data: Mapping[str, Any]) -> str:
    """The page of a template in page/ with the files there for each {{file}}, and for {{data}} the data, as JSON."""
    folder = files("megatron_nft.observe") / "page"
    template, *parts = [(folder / file).read_text(encoding="utf-8") for file in (name, *names_of_parts)]
    filled = {**dict(zip(names_of_parts, parts, strict=True)), "data": script_json(data)}
    # One pass over the template: what is filled in is never searched, so an answer can't pose as a placeholder.
    return re.sub(r"\{\{([\w.]+)\}\}", lambda match: filled[match[1]], template)
