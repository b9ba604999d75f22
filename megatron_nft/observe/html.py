"""The report page: one self-contained HTML file that needs no network, on a phone or a desk, light or dark.

Records and sampled answers come in; the page goes out with them embedded as JSON, drawn by the scripts in page/. The
answers are a model's output and untrusted: no byte of them can end the JSON's script element, the scripts only ever set
them as text, and a content security policy forbids every request. Called by `observe.report`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from megatron_nft.config import Config, to_toml
from megatron_nft.observe.answers import AnswerRecord
from megatron_nft.observe.evaluation_table import benchmark_rows, curve_ends, paper_rows, series_rows
from megatron_nft.observe.metrics import METRICS, STAGES
from megatron_nft.observe.series import columns, correct_rates
from megatron_nft.types import StepReport

PAGE_FILES = ("style.css", "charts.js", "tables.js", "answers.js", "page.js")


def write_page(
    path: Path,
    *,
    config: Config,
    verdict: str,
    minutes: float,
    records: Sequence[StepReport],
    answers: Sequence[AnswerRecord],
) -> None:
    """Writes the page so that `path` is at any time a whole page: the previous one or this one.

    Args:
        path: the file to replace.
        config: the resolved recipe.
        verdict: how the run stands: "running", "done", "interrupted", "failed: ...".
        minutes: wall time so far.
        records: all steps and evaluations so far, in order.
        answers: sampled answers to browse.
    """
    page = render_page(config=config, verdict=verdict, minutes=minutes, records=records, answers=answers)
    replace_text(path, page)


def replace_text(path: Path, text: str) -> None:
    """Writes a file that is whole at any time: the previous one or this one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def render_page(
    *,
    config: Config,
    verdict: str,
    minutes: float,
    records: Sequence[StepReport],
    answers: Sequence[AnswerRecord],
) -> str:
    """The page as text."""
    steps = [r for r in records if r.kind == "step"]
    evaluations = [r for r in records if r.kind == "evaluation"]
    data = {
        "run": {
            "name": config.run.name,
            "verdict": verdict,
            "minutes": minutes,
            "model": Path(config.model.path).name,
            "layout": _layout(config),
            "recipe": to_toml(config),
            "num_steps": steps[-1].step if steps else 0,
            "total_steps": config.train.steps,
            "samples": config.evaluate.samples,
            "max_answer_tokens": config.rollout.max_answer_tokens,
        },
        "metrics": {m.name: {"unit": m.unit, "meaning": m.meaning} for m in METRICS.values()},
        "stages": STAGES,
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
    filled = {**dict(zip(names_of_parts, parts, strict=True)), "data": _script_json(data)}
    # One pass over the template: what is filled in is never searched, so an answer can't pose as a placeholder.
    return re.sub(r"\{\{([\w.]+)\}\}", lambda match: filled[match[1]], template)


def _layout(config: Config) -> str:
    actor, rollout = config.actor, config.rollout
    axes = " x ".join(f"{axis} {size}" for axis, size in (("tp", actor.tp), ("pp", actor.pp), ("dp", actor.dp)))
    engines = f"{rollout.engines} engine{'s' if rollout.engines > 1 else ''} x tp {rollout.tp}"
    return f"actor {axes}, {actor.precision}; {engines}, {rollout.dtype}; {config.cluster.device}"


def _script_json(data: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element: pure ASCII, and without the characters that could end or open a tag."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
