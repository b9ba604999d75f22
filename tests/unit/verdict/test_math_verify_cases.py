"""math-verify's own test cases, through the service: the same outcomes. tests/assets/math_verify says where from."""

import json
import re
from pathlib import Path

import pytest
from math_verify import ExprExtractionConfig, LatexExtractionConfig
from math_verify.metric import math_metric

from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.boxes import last_boxed
from megatron_nft.verdict.judge import Judge

CASES = [json.loads(line) for line in Path("tests/assets/math_verify/cases.jsonl").read_text().splitlines()]
FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\[(.+)\\\]|\\\((.+)\\\)|([-+0-9., /]+)", re.DOTALL)

OTHERWISE_BOXED = {
    # A comma separates two numbers, if not three digits follow it.
    ("1000.99", "1000,99"),
    ("1,22", "1.22"),
    # "right" there, as \mathrm{e} is not understood.
    (r"$1 - \frac{1}{\mathrm{e}}$", r"$1 + \frac{1}{\mathrm{e}}$"),
    # False equations, of which only the last side counts there: all sides behind a name must agree.
    ("$x = 11$", "$x = 5+5+1 = 7 =11$"),
    ("$x = 1/3$", "$x = 5+5+1 = 1/3 \\approx 11$"),
    ("$z = 1 + 1 = 2$", "$z = 3+3 = 2$"),
    (r"$1 = \zzz = x = 0$", "$0$"),
    # An inequality is an interval in either direction, not only where the ground truth is the inequality.
    (r"$x \in [-2,7]$", r"$-2 \\le x \\le 7$"),
}
"""Decided otherwise in a box than by math-verify."""
OTHERWISE_WHOLE = {("1,22", "1.22"), (r"$1 - \frac{1}{\mathrm{e}}$", r"$1 + \frac{1}{\mathrm{e}}$")}
"""Where the ground truth's box makes a difference to math-verify: the two "right" ones that no one would miss."""

GOLDS = ("3, 5, 7", "1,-2", "1,2", r"\$36", r"\$18.90", r"\$32,\!348", "1,000", "1/2", r"50\%", "50%", "- 3", "5 ",
         "x+1", r"\frac{1}{2}", r"\text{Evelyn}", "[1,2)", "(1,2)", r"90^\circ", "2e5", r"\boxed{7}", "$7$",
         r"2\sqrt{2}")  # fmt: skip
TEXTS = (r"so \boxed{%s}.", "The answer is $%s$.", "%s", r"\boxed{41} and then \boxed{%s}", r"\boxed{%s}, not 8",
         "The final answer is $%s$. I hope it is correct. Check: 9")  # fmt: skip
FOUND = ("7", "1", "-2", "3", "12", "36", "18.90", "32348", "0.5", "7, 5, 3", "-2, 1", "1000", "50", "90", "3,5")
"""Answers, beside the ground truths themselves."""


@pytest.fixture(scope="module")
def judge():
    with Judge(VerdictConfig(workers=2, deadline_s=20, modes={"text": "whole_text"})) as judge:
        judge.warm_up()
        yield judge


def formula(text):
    """The one formula or number that the text consists of, or None."""
    boxes = text.count(r"\boxed")
    if boxes:
        return last_boxed(text) if boxes == 1 else None
    match = FORMULA.fullmatch(text.strip())
    return next((group.strip() for group in match.groups() if group), None) if match else None


def outcomes(judge, source, pairs):
    answers, golds = zip(*pairs, strict=True)
    return [v.is_right for v in judge.judge_answers(answers, golds, [source] * len(golds))]


def test_whole_texts(judge):
    assert len(CASES) == 225
    found = outcomes(judge, "text", [(case["answer"], case["gold"]) for case in CASES])
    otherwise = {(c["gold"], c["answer"]) for c, right in zip(CASES, found, strict=True) if c["right"] != right}
    assert otherwise == OTHERWISE_WHOLE


def test_whole_texts_are_graded_as_the_authors_grade(judge):
    """As in verl's utils/reward_score/math_verify.py, after which the NFT authors' verifier.py is made."""
    theirs = math_metric(
        gold_extraction_target=(LatexExtractionConfig(),),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig()),
    )
    pairs = [(text % answer, gold) for gold in GOLDS for text in TEXTS for answer in (gold, *FOUND[::3])]
    pairs += [(rf"\boxed{{{answer}}}", gold) for gold in GOLDS for answer in FOUND]
    right = [theirs([rf"\boxed{{{gold}}}"], [text])[0] > 0 for text, gold in pairs]
    assert 100 < sum(right) < len(pairs) - 100
    found = outcomes(judge, "text", pairs)
    assert [pair for pair, one, other in zip(pairs, found, right, strict=True) if one != other] == []


def test_formulas_in_a_box(judge):
    cases = [case for case in CASES if formula(case["answer"]) and formula(case["gold"])]
    assert len(cases) == 163
    pairs = [(rf"The answer is $\boxed{{{formula(c['answer'])}}}$.", formula(c["gold"])) for c in cases]
    found = outcomes(judge, "math", pairs)
    otherwise = {(c["gold"], c["answer"]) for c, right in zip(cases, found, strict=True) if c["right"] != right}
    assert otherwise == OTHERWISE_BOXED
