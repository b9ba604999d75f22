"""The report page as a file: self-contained, safe against its own answers, and there at any size of run."""

import json
import random
import re
import socket
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_nft.observe.answers import PageAnswers, add_strips, choose_answers
from megatron_nft.observe.charts import OTHER_LOSS, SECTIONS, sections
from megatron_nft.observe.html import render_page, write_page
from megatron_nft.observe.metrics import METRICS
from megatron_nft.types import StepReport

HOSTILE = "</script><img src=x onerror=alert(1)><!-- {{page.js}} {{data}} &amp; \u2028 ]]> \ud800"


class Page(HTMLParser):
    """Collects the tags of a page and the text of its script elements, as a browser's tokenizer would split them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, text):
        if self._in_script:
            self.scripts.append(text)

    @property
    def data(self):
        return json.loads(self.scripts[0])


def records(num_steps, num_evaluations=0):
    steps = [
        StepReport(step=i, kind="step", time="", metrics={"nft/loss": 0.1 / i, "time/step_s": 1.0})
        for i in range(1, num_steps + 1)
    ]
    evaluations = [
        StepReport(step=i, kind="evaluation", time="", metrics={"eval/greedy_accuracy": 0.5})
        for i in range(num_evaluations)
    ]
    return steps + evaluations


def render(config, records=(), answers=(), verdict="done"):
    return render_page(config=config, verdict=verdict, minutes=1.5, records=records, answers=answers)


def test_it_needs_no_network(make_config):
    text = render(make_config(), records(3, 2))
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttpRequest|WebSocket", text)
    assert all("src" not in attrs for _, attrs in page.tags)
    assert [attrs["href"] for _, attrs in page.tags if "href" in attrs] == ["data:,"]
    policies = [attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs]
    assert len(policies) == 1 and "default-src 'none'" in policies[0]


def test_a_hostile_answer_stays_text(make_config, make_group):
    group = make_group("wrong", text=HOSTILE, name=HOSTILE)
    answers = choose_answers([group], 1, step=1, source="train", seed=1)
    clean, page = Page(render(make_config())), Page(render(make_config(), answers=answers))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]  # no element more, no script ended early
    assert page.scripts[1:] == clean.scripts[1:]
    assert page.data["answers"][0]["answer"] == f"{HOSTILE} #0"


def test_a_hostile_run_name_and_verdict_stay_text(make_config):
    page = Page(render(make_config(name="</title><b>x"), verdict=f"failed: {HOSTILE}"))
    assert not {"b", "img"} & {tag for tag, _ in page.tags}
    assert page.data["run"]["name"] == "</title><b>x" and page.data["run"]["verdict"].endswith(HOSTILE)


def test_scripts_never_set_markup(make_config):
    scripts = "".join(Page(render(make_config())).scripts[1:])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", scripts)


@pytest.mark.parametrize(("num_steps", "num_evaluations"), [(0, 0), (1, 0), (1, 1), (800, 40)])
def test_any_number_of_records(make_config, num_steps, num_evaluations):
    text = render(make_config(), records(num_steps, num_evaluations))
    data = Page(text).data
    assert len(data["steps"]["step"]) == num_steps and len(data["evaluations"]["step"]) == num_evaluations
    assert len(text) < 200_000 and "{{" not in text


def test_missing_and_infinite_values_become_null(make_config):
    mixed = [
        StepReport(step=1, kind="step", time="", metrics={"nft/loss": float("nan"), "actor/grad_norm": 0.123456789}),
        StepReport(step=2, kind="step", time="", metrics={"nft/loss": 0.5}),
    ]
    metrics = Page(render(make_config(), mixed)).data["steps"]["metrics"]
    assert metrics == {"nft/loss": [None, 0.5], "actor/grad_norm": [0.123457, None]}


def test_headers_come_from_the_recipe(make_config, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "megatron_nft.train", "recipe.toml"])
    run = Page(render(make_config())).data["run"]
    facts = run["facts"]
    assert facts["Method"] == "NFT" and facts["Model"] == "tiny-model" and facts["Data"] == "sums.jsonl"
    assert facts["Layout"].startswith("actor tp 1 x pp 1 x dp 1, bf16; 1 engine x tp 1") and facts["Seed"] == "1"
    assert (
        facts["Host"] == socket.gethostname()
        and facts["Command"].endswith("-m megatron_nft.train recipe.toml")
        and facts["Begun"]
    )
    assert re.fullmatch(r"[0-9a-f]{10}\+?", facts["Commit"]) or not Path(".git").exists()
    assert "[optimizer]" in run["recipe"]


def test_the_file_is_replaced_as_a_whole(make_config, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    held = path.open()  # a reader that opened the old page still reads all of it
    write_page(path, config=make_config(), verdict="done", minutes=1, records=[], answers=[])
    assert held.read() == "old" and path.read_text().startswith("<!doctype html>")
    held.close()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_charts_are_those_of_what_was_measured_and_are_told_for_the_method():
    (learning,) = sections("dapo", ["nft/loss", "nft/loss_wrong", "some/metric"])
    (chart,) = learning["charts"]
    assert learning["title"] == "Learning" and chart["title"] == "DAPO loss" and chart["good"] == OTHER_LOSS
    assert [metric for _, metric in chart["lines"]] == ["nft/loss", "nft/loss_wrong"]
    (several,) = sections("", ["nft/loss"])
    assert several["charts"][0]["title"] == "Loss" and sections("nft", []) == []


def test_every_chart_draws_public_metrics_and_says_what_is_good():
    charts = [chart for _, its in SECTIONS for chart in its]
    assert sorted({metric for chart in charts for _, metric in chart.lines} - METRICS.keys()) == []
    assert all(chart.good.endswith((".", "}")) and chart.unit for chart in charts)
    assert {"nft/loss", "actor/grad_norm", "actor/learning_rate", "nft/ratio_mean", "nft/entropy", "nft/kl", "perf/mfu",
            "nft/clamped_fraction", "rollout/right_tokens_p50"} <= {m for c in charts for _, m in c.lines}  # fmt: skip


def test_a_page_of_320_steps_with_everything_measured_stays_below_2_mb(make_config, make_group):
    """Long answers, kept as a run keeps them."""
    draw = random.Random(1)
    steps = [
        StepReport(step=i, kind="step", time="2026-11-28T12:00:00+00:00", metrics={n: draw.random() for n in METRICS})
        for i in range(1, 321)
    ]
    groups = [
        make_group("right", "wrong", text="x = \\\\frac{1}{2} < 3 & 4 " * 300, name=f"sums/{i}") for i in range(8)
    ]
    kept = PageAnswers()
    for step in range(1, 321):
        answers = choose_answers(groups, 16, step=step, source="train", seed=1)
        add_strips(answers, groups, None, None)
        kept.add(answers)
    page = render(make_config(), steps, kept.records)
    assert 1_000_000 < len(page.encode()) < 2_000_000
