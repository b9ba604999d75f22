"""The page of an evaluation: which answers are on it, and in a browser, what it shows of them."""

import numpy as np
import pytest

from megatron_nft.evaluation.page import ANSWERS_PER_BENCHMARK, choose_answers, render_evaluation
from megatron_nft.evaluation.samples import Answer
from megatron_nft.evaluation.scores import GradedPrompt, score
from megatron_nft.types import Prompt, Verdict
from tests.browser import CHROMIUM, Browser

KINDS = ("right", "wrong", "unparsable", "timeout", "error")
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">{{data}}"


def graded(number, kinds=("right", "wrong"), text="so 7"):
    prompt = Prompt(
        prompt_id=f"sums/{number}", text="1+6=", token_ids_P=np.arange(3), ground_truth="7", data_source="sums"
    )
    result = GradedPrompt(
        answers=tuple(Answer(text=f"{text} #{i}", num_tokens=5, truncated=i == 3) for i in range(len(kinds))),
        finals=("7",) * len(kinds),
        verdicts=tuple(Verdict(kind=kind) for kind in kinds),
    )
    return prompt, result


def test_chosen_answers_are_of_every_outcome_and_the_same_again():
    benchmark = [graded(i, ("right",) * 5) for i in range(500)] + [graded(500, ("wrong", "timeout"))]
    chosen = choose_answers("sums", benchmark, seed=1, most_chars=10**6)
    assert chosen == choose_answers("sums", benchmark, seed=1, most_chars=10**6)
    assert chosen != choose_answers("sums", benchmark, seed=2, most_chars=10**6)
    assert len(chosen) == ANSWERS_PER_BENCHMARK
    assert {(a["verdict"], a["truncated"]) for a in chosen} == {
        ("right", False), ("right", True), ("wrong", False), ("timeout", False)
    }  # fmt: skip
    assert sum(a["truncated"] for a in chosen) == 99
    assert next(a["correct_rate"] for a in chosen if a["verdict"] == "right") == 0.8  # of five, one was cut


def test_a_page_stays_bounded():
    long = [graded(i, text="x" * 50_000) for i in range(300)]
    chosen = choose_answers("sums", long, seed=1, most_chars=100_000)
    assert 100_000 <= sum(len(a["answer"]) for a in chosen) < 120_000
    assert choose_answers("sums", [], seed=1, most_chars=100_000) == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian or Ubuntu: apt-get install chromium")
@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.night("the same on a wide screen"))])
def test_in_a_browser(tmp_path, width):
    benchmarks = {
        "aime24": [graded(i, KINDS, text="word " * 40) for i in range(12)],
        "math500": [graded(i, text=HOSTILE) for i in range(20)],
    }
    scores = [
        score(name, {"aime24": "AIME24", "math500": "MATH500"}[name], [g for _, g in its], 0, len(its[0][1].answers), 1)
        for name, its in benchmarks.items()
    ]
    path = tmp_path / "report.html"
    path.write_text(render_evaluation("a_model_with_a_long_name<b>", "temperature 0.6 & more", scores, benchmarks, 1))
    with Browser() as browser:
        page = browser.open(path, width, part="benchmark=aime24&verdict=timeout")
        assert page.run("document.documentElement.scrollWidth - innerWidth") <= 0
        assert page.run("document.title") == "Evaluation of a_model_with_a_long_name<b>"
        ours = page.run("[...document.querySelectorAll('.ours td')].map(cell => cell.textContent)")
        assert ours[1:3] == ["20.0", "50.0"]
        assert page.run("document.getElementById('answer-count').textContent") == "12 of 100"
        assert page.run("[...document.querySelectorAll('.answer .chip')].map(chip => chip.textContent)")[0] == "timeout"
        page.run("location.hash = 'benchmark=math500'")
        page.run("new Promise(done => setTimeout(done, 50))")
        assert "onerror" in page.run("document.querySelector('.answer').textContent")
        assert page.problems() == []
        page.screenshot(tmp_path / "page.png")
