"""The pages in a headless Chromium, at a phone's and a desk's width: nothing sticks out, nothing is reported as an
error, every chart has marks, labels don't lie on each other, and the filters choose what they say."""

import math
import random

import pytest

from megatron_nft.observe.charts import SECTIONS
from megatron_nft.observe.compare import RunRecord, render_comparison
from megatron_nft.observe.html import render_page
from megatron_nft.observe.metrics import METRICS
from megatron_nft.observe.timeline import Span, rows_to_draw
from megatron_nft.types import StepReport
from tests.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; on Debian or Ubuntu: apt-get install chromium"
)
PHONE, DESK = 390, 1280
WIDTHS = [PHONE, pytest.param(DESK, marks=pytest.mark.night("a wide page has room for what fits a phone"))]
STEPS = 120
KINDS = ("right", "wrong", "unparsable", "timeout", "error")

STICKS_OUT = "document.documentElement.scrollWidth - innerWidth"
CHARTS = """[...document.querySelectorAll('.chart:not([hidden])')].map(card => ({
    title: card.querySelector('h3').textContent, empty: !!card.querySelector('.empty'),
    marks: [...card.querySelectorAll('svg > path, svg > rect, svg > circle, svg > polygon')]
        .filter(mark => { const box = mark.getBBox(); return box.width + box.height > 1; }).length}))"""
EMPTY_LINES = """[...document.querySelectorAll('.chart svg > path')]
    .filter(path => path.getTotalLength() < 10).length"""
OVERLAPS = """[...document.querySelectorAll('.chart:not([hidden])')].flatMap(card => {
    const labels = [...card.querySelectorAll('svg text')].map(node => [node.textContent, node.getBoundingClientRect()]);
    const frame = card.getBoundingClientRect(), found = [];
    labels.forEach(([text, box], i) => {
        if (box.left < frame.left || box.right > frame.right || box.bottom > frame.bottom) found.push([text, 'cut']);
        for (const [other, its] of labels.slice(i + 1))
            if (box.left < its.right && its.left < box.right && box.top + 4 < its.bottom && its.top + 4 < box.bottom)
                found.push([card.querySelector('h3').textContent, text, other]);
    });
    return found;
})"""
BAR_GAPS = """(() => { const bars = [...document.querySelectorAll('.chart:not([hidden])')].find(card =>
        card.querySelector('h3').textContent === 'Time of a step').querySelectorAll('svg rect');
    const boxes = [...bars].map(bar => bar.getBoundingClientRect()).sort((a, b) => a.left - b.left);
    if (!boxes.length) return [];
    return boxes.slice(1).map((box, i) => (box.left - boxes[i].right) / box.width); })()"""
SHOWN = """({count: document.getElementById('answer-count').textContent,
    chips: [...document.querySelectorAll('.answer')].map(card =>
        [...card.querySelectorAll('header .chip')].map(chip => chip.textContent).join('+'))})"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as running:
        yield running


def step_report(step, draw):
    right = round(300 * (0.3 + 0.4 * min(step / STEPS, 1)) + draw.uniform(-20, 20))
    progress = min(step / STEPS, 1)
    drawn = [draw.betavariate(0.4 + progress, 1.4 - progress) for _ in range(64)]
    rates = [sum(int(10 * rate) == i for rate in drawn) for i in range(10)]
    times = {"rollout": 71.5, "verdict": 3.2, "pack": 0.4, "score": 12.0, "train": 48.0, "sync": 5.0, "checkpoint": 2.0}
    metrics = {f"time/{stage}_s": s * draw.uniform(0.9, 1.1) for stage, s in times.items()}
    metrics |= {"time/step_s": sum(metrics.values()) + 1.0, "train/step": step, "train/updates": 16 * step}
    metrics |= {"nft/loss": draw.gauss(-2e-4, 1e-3), "nft/correct_rate": right / 512, "actor/grad_norm": 0.3}
    metrics |= {"rollout/logprob_gap_mean": 3e-7 * draw.uniform(1, 9), "rollout/logprob_gap_max": 2e-3 * draw.random()}
    metrics |= {"rollout/answer_tokens_mean": 900 + 10 * step, "rollout/truncated_fraction": 0.1 * draw.random()}
    metrics["rollout/answers"] = 512
    metrics |= {"verdict/right": right, "verdict/wrong": 500 - right, "verdict/unparsable": 9, "verdict/timeout": 2,
                "verdict/error": 1}  # fmt: skip
    if step == 40:
        metrics["nft/loss"] = math.nan
    return StepReport(step=step, kind="step", time="", metrics=metrics, groups_by_correct_rate=tuple(rates))


def evaluation(step):
    def scores(rate, prompts):
        half = 1.96 * (rate * (1 - rate) / prompts) ** 0.5
        its = {"eval/prompts": prompts, "eval/k": 4, "eval/truncated_fraction": 0.02}
        for name, value in (("greedy_accuracy", rate), ("avg_at_k", rate - 0.02)):
            its |= {f"eval/{name}": value, f"eval/{name}_low": max(0, value - half), f"eval/{name}_high": value + half}
        return its

    rate = 0.3 + 0.4 * min(step / STEPS, 1)
    average = {"eval/average": rate / 2, "eval/average_low": rate / 2 - 0.02, "eval/average_high": rate / 2 + 0.02}
    once = {name: scores(rate, 500) for name in ("math500", "olympiad", "minerva")}
    return StepReport(
        step=step, kind="evaluation", time="",
        metrics=scores(rate, 530) | average | {"train/step": step, "train/updates": 16 * step},
        benchmarks={name: scores(rate / 3, 30) for name in ("aime24", "aime25", "amc23")} | once,
    )  # fmt: skip


def records(num_steps=STEPS):
    draw = random.Random(1)
    evaluations = [evaluation(step) for step in range(0, num_steps + 1, 20)]
    return evaluations + [step_report(step, draw) for step in range(1, num_steps + 1)]


def answer(i):
    kind = KINDS[i % 5]
    return {
        "step": i // 10, "source": "evaluation" if i % 3 == 0 else "train", "prompt_id": f"dapo_math_17k/{i}",
        "prompt": "<|im_start|>user\nWhat is $\\sqrt{" + "x+" * 60 + "1}$?<|im_end|>", "answer": "word " * (5 + 9 * i),
        "ground_truth": "2", "verdict": kind, "detail": "2", "truncated": i % 7 == 0, "policy_version": i // 10,
        "correct_rate": 0.25, "num_tokens": 5 + i, "rule": "evaluated", "place": 0,
        "group": [[kind, 5 + i, "2"], ["wrong", 40, "3"]], "tokens": ["a", " b\n"], "engine_logprobs": [-0.1, -2.0],
    }  # fmt: skip


ANSWERS = [answer(i) for i in range(60)]
TIMELINE = rows_to_draw(
    7, [Span("driver", "rollout", 0.0, 2.0), Span("engine 0", "rollout", 0.1, 1.9), Span("driver", "train", 2.0, 3.0),
        *(Span(f"actor rank {rank}", "train", 2.1, 2.9) for rank in range(12))],
)  # fmt: skip


@pytest.fixture
def make_page(make_config, tmp_path):
    """make_page(records, answers): the page of a run, as a file."""

    def make(its_records=None, answers=ANSWERS, name="nft_qwen2.5_math_7b_second_attempt_longer_warmup", **more):
        its_records = records() if its_records is None else its_records
        path = tmp_path / "report.html"
        more = {"config": make_config(name=name), "verdict": "running", "timeline": TIMELINE} | more
        path.write_text(render_page(minutes=321.0, records=its_records, answers=answers, **more))
        return path

    return make


def check(page, width, picture):
    assert page.run("innerWidth") == width
    assert page.run(STICKS_OUT) <= 0
    assert page.run(OVERLAPS) == []
    assert page.problems() == []
    assert page.screenshot(picture)[:4] == b"\x89PNG"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_run(browser, make_page, tmp_path, width):
    page = browser.open(make_page(), width)
    check(page, width, tmp_path / "page.png")
    charts = page.run(CHARTS)
    assert len(charts) == 14, [chart["title"] for chart in charts]
    assert [chart["title"] for chart in charts[:2]] == [
        "Mean of the 6 benchmarks",
        "Mean of the 6 benchmarks, by updates",
    ]
    assert "7B NFT, published" in page.run(
        "document.querySelectorAll('.chart')[1].querySelector('.legend').textContent"
    )
    assert [chart for chart in charts if chart["empty"] or not chart["marks"]] == []
    assert page.run(EMPTY_LINES) == 0
    rows = page.run("[...document.querySelectorAll('.results tr')].map(row => row.cells[0].textContent)")
    assert "math500" in rows and "this run, step 120" in rows and "7B NFT (published)" in rows


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_chart_is_there_if_one_of_its_numbers_was_measured(browser, make_page, tmp_path, width):
    """All of them, then one after the other; no card is ever empty."""

    def measured(names):
        kinds = {"eval": "evaluation"}
        kept = [(kinds.get(name.partition("/")[0], "step"), name) for name in names]
        return [
            StepReport(step=step, kind=kind, time=f"2026-11-28T1{step}:00:00+00:00",
                       metrics={name: 0.1 * step + 0.2 for its, name in kept if its == kind},
                       groups_by_correct_rate=(1,) * 10 if kind == "step" and "rollout/answers" in names else ())
            for step in (1, 2) for kind in ("step", "evaluation")
        ]  # fmt: skip

    page = browser.open(make_page(measured(METRICS)), width)
    check(page, width, tmp_path / "page.png")
    charts = page.run(CHARTS)
    assert not [chart for chart in charts if chart["empty"] or not chart["marks"]]
    words = {"{method} loss": "NFT loss", "Mean of the benchmarks": "Mean of the 0 benchmarks"}
    alone = [chart for _, its in SECTIONS for chart in its if chart.kind != "benchmarks"]  # that takes several files
    assert {words.get(chart.title, chart.title) for chart in alone} <= {chart["title"] for chart in charts}
    assert page.run("document.querySelectorAll('.chart .hint').length") == len(charts)
    if width == DESK:
        return
    for chart in random.Random(1).sample(alone, 6):
        page = browser.open(make_page(measured([chart.lines[0][1]]), timeline=None), width)
        titles = {each["title"] for each in page.run(CHARTS)}
        expected = words.get(chart.title, chart.title)
        assert expected in titles and len(titles) <= 2, titles  # of a benchmark's mean there are two


@pytest.mark.night("runs that have just begun, or are as long as none")
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("num_steps", [0, 1, 10_000])
def test_runs_of_any_length(browser, make_page, tmp_path, width, num_steps):
    path = make_page(records(num_steps))
    page = browser.open(path, width)
    check(page, width, tmp_path / "page.png")
    titles = {chart["title"] for chart in page.run(CHARTS)}
    assert ("NFT loss" in titles) == (num_steps > 0) and "Held-out accuracy, over all prompts" in titles
    assert path.stat().st_size < 2_000_000
    assert all(
        gap < 0.5 for gap in page.run(BAR_GAPS) or []
    )  # in bars' widths: thinned ones are as wide as their steps


def test_everything_folded_fits_a_phone_when_it_is_opened(browser, make_page):
    page = browser.open(make_page(), PHONE)
    page.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.run(STICKS_OUT) <= 0


@pytest.mark.parametrize("kind", [*KINDS, "truncated"])
def test_the_verdict_filter(browser, make_page, kind):
    page = browser.open(make_page(), DESK)
    page.run(f"""(() => {{ const box = document.getElementById('filter-verdict');
        box.value = '{kind}'; box.dispatchEvent(new Event('change')); }})()""")

    def fits(a):
        if kind == "truncated":
            return a["truncated"]
        return kind == ("wrong" if a["verdict"] == "right" and a["truncated"] else a["verdict"])

    wanted = [a for a in ANSWERS if fits(a)]
    shown = page.run(SHOWN)
    assert 0 < len(wanted) < len(ANSWERS) and shown["count"] == f"{len(wanted)} of {len(ANSWERS)}"
    chips = [a["verdict"] + "+truncated" * a["truncated"] for a in reversed(wanted)]
    assert shown["chips"] == chips[: len(shown["chips"])] and len(shown["chips"]) == min(8, len(chips))
    assert page.run("location.hash") == f"#verdict={kind}"
    assert page.problems() == []


def test_filters_from_the_address_combine_and_more_shows_the_rest(browser, make_page):
    page = browser.open(make_page(), DESK, part="version=2&from=training&verdict=wrong")
    wanted = [a for a in ANSWERS if a["policy_version"] == 2 and a["source"] == "train" and a["verdict"] == "wrong"]
    assert page.run(SHOWN)["count"] == f"{len(wanted)} of 60" and wanted
    page.run("location.hash = 'step=5'")
    page.run("new Promise(done => setTimeout(done, 50))")
    assert page.run(SHOWN)["count"] == "10 of 60" and len(page.run(SHOWN)["chips"]) == 8
    page.run("document.getElementById('more').click()")
    assert len(page.run(SHOWN)["chips"]) == 10 and page.run("document.getElementById('more').hidden")
    page.run("location.hash = 'step=no-such-step'")
    page.run("new Promise(done => setTimeout(done, 50))")
    assert page.run(SHOWN)["count"] == "60 of 60"


def test_search_order_and_the_group_beside(browser, make_page):
    page = browser.open(
        make_page(answers=[*ANSWERS, ANSWERS[1] | {"answer": "its neighbour", "num_tokens": 999}]), DESK
    )

    def choose(name, value, event):
        page.run(f"""(() => {{ const box = document.getElementById('filter-{name}'); box.value = {value!r};
            box.dispatchEvent(new Event('{event}')); }})()""")

    first = "document.querySelector('.answer').textContent"
    choose("order", "longest", "change")
    assert "999 tokens" in page.run(first) and page.run("location.hash") == "#order=longest"
    choose("order", "shortest", "change")
    assert "5 tokens" in page.run(first)
    choose("search", "NEIGHBOUR", "input")
    assert page.run(SHOWN)["count"] == "1 of 61" and page.run("location.hash") == "#order=shortest&search=NEIGHBOUR"
    page.run("document.querySelector('.answer details').open = true")
    assert ANSWERS[1]["answer"].strip() in page.run("document.querySelector('.beside').textContent")
    chips = page.run("[...document.querySelectorAll('.members .chip')].map(chip => chip.title)")
    assert chips == ["wrong, 6 tokens: 2", "wrong, 40 tokens: 3"]
    assert "extracted: 2  |  gold: 2  |  rule: evaluated" in page.run(first)
    assert page.run("[...document.querySelectorAll('.strip span')].map(mark => mark.title)") == [
        "token 0: engine -0.1000", "token 1: engine -2.0000",
    ]  # fmt: skip
    assert page.problems() == []


def test_a_failed_run_shows_its_error_and_its_answers_first(browser, make_page):
    page = browser.open(make_page([], verdict="failed: NoMixedGroups: step 1: 0 of 18\nand a second line"), DESK)
    assert page.run("document.getElementById('run-verdict').textContent") == "failed"
    assert page.run("document.getElementById('error-text').textContent").endswith("0 of 18\nand a second line")
    tops = page.run(
        "['error', 'browser', 'headline'].map(id => document.getElementById(id).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops) and page.run(CHARTS)[:-1] == [] and page.problems() == []


def test_another_axis(browser, make_page):
    its = [
        StepReport(step=i, kind="step", time=f"2026-11-28T{10 + i}:30:00+00:00",
                   metrics={"nft/loss": i, "train/updates": 16 * i, "actor/tokens": 5e6})
        for i in (1, 2, 3)
    ]  # fmt: skip
    page = browser.open(make_page(its, timeline=None), DESK)
    labels = "[...document.querySelectorAll('.chart svg text')].map(node => node.textContent)"
    for axis, (title, last) in {
        "update": ("update", "48"),
        "hour": ("hours", "2.0"),
        "token": ("M tokens trained on", "15"),
    }.items():
        page.run(f"""(() => {{ const box = document.getElementById('axis'); box.value = '{axis}';
            box.dispatchEvent(new Event('change')); }})()""")
        assert {title, last} <= set(page.run(labels)), (axis, page.run(labels))


def test_a_hostile_answer_does_nothing(browser, make_page):
    hostile = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    page = browser.open(make_page(answers=[answer(1) | {"answer": hostile, "prompt_id": hostile}], name=hostile), DESK)
    assert page.run("document.title").endswith(": training report")
    assert hostile in page.run("document.querySelector('.answer').textContent")
    assert page.problems() == []


def test_pointing_at_a_chart_says_its_values(browser, make_page):
    page = browser.open(make_page(), DESK)
    page.run("document.querySelector('.chart svg').scrollIntoView()")
    box = page.run(
        "(b => [b.left, b.top, b.width, b.height])(document.querySelector('.chart svg').getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 0.99 * box[2], y=box[1] + box[3] / 2)
    text = page.run("document.getElementById('tooltip').textContent")
    assert "step 120" in text and "this run35 (33–37)" in text.replace(" %", ""), text


@pytest.mark.parametrize("width", WIDTHS)
def test_runs_compared(browser, tmp_path, width):
    runs = [
        RunRecord(label=f"run_{name}_with_a_long_name", recipe={"run.seed": name * 6}, records=records())
        for name in ("one", "two", "three")
    ]  # fmt: skip
    path = tmp_path / "comparison.html"
    path.write_text(render_comparison(runs))
    page = browser.open(path, width)
    check(page, width, tmp_path / "page.png")
    assert all(chart["marks"] and not chart["empty"] for chart in page.run(CHARTS))
    first = "document.querySelector('#results .value').getBoundingClientRect()"
    assert page.run(f"{first}.right") < width  # a phone shows a number without scrolling its table
    assert page.run("Math.max(...[...document.querySelectorAll('tr')].map(row => row.offsetHeight))") < 120
