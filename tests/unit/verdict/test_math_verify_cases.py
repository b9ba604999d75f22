"""math-verify's own test cases, through the service: the same outcomes. tests/assets/math_verify says where from."""

import json
import re
from pathlib import Path

import pytest

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
    assert [case for case, right in zip(CASES, found, strict=True) if case["right"] != right] == []


def test_formulas_in_a_box(judge):
    cases = [case for case in CASES if formula(case["answer"]) and formula(case["gold"])]
    assert len(cases) == 163
    pairs = [(rf"The answer is $\boxed{{{formula(c['answer'])}}}$.", formula(c["gold"])) for c in cases]
    found = outcomes(judge, "math", pairs)
    otherwise = {(c["gold"], c["answer"]) for c, right in zip(cases, found, strict=True) if c["right"] != right}
    assert otherwise == OTHERWISE_BOXED
