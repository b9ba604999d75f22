"""math-verify's own test cases, through the service: the same outcomes. tests/assets/math_verify says where from."""

import json
import re
from pathlib import Path

import pytest

from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.judge import Judge
from megatron_nft.verdict.math_answer import last_boxed

CASES = [json.loads(line) for line in Path("tests/assets/math_verify/cases.jsonl").read_text().splitlines()]
FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\[(.+)\\\]|\\\((.+)\\\)|([-+0-9., /]+)", re.DOTALL)

OTHERWISE_BOXED = {
    ("1000", "1 000"),  # in a formula a space is no thousands separator
    ("1000.99", "1000,99"),  # ... and a comma separates two numbers
    ("1,22", "1.22"),
    (r"$1 - \frac{1}{\mathrm{e}}$", r"$1 + \frac{1}{\mathrm{e}}$"),  # "right" there, as \mathrm{e} is not understood
}
"""Plain numbers have rules of their own in math-verify, which a box, read as LaTeX, has not."""


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
