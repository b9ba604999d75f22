"""Cases that graders are easily wrong about, as a person decides them. tests/assets/verdicts says where from."""

import json
from pathlib import Path

import pytest

from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.judge import Judge

CASES = [
    json.loads(line) for line in Path("tests/assets/verdicts/cases.jsonl").read_text(encoding="utf-8").splitlines()
]

WHOLE_TEXT = "whole_text is math-verify's own search, as it is: unfit for rewards, and refused for training"
OTHERWISE = {
    ("I don't know. Problem 42", "42"): WHOLE_TEXT,
    ("41 or 42", "42"): WHOLE_TEXT,
    ("x + 1", "1"): WHOLE_TEXT,
    ("final answer is $42$. Hmm, the answer is $41$", "42"): WHOLE_TEXT,
    (r"\boxed{2·3}", "6"): "the sign is read, but a product is not evaluated: for a number the answer is a number",
}
"""(answer, ground truth) -> why it is decided otherwise than the case says. At most 10."""


@pytest.fixture(scope="module")
def verdicts():
    with Judge(VerdictConfig(workers=2, deadline_s=20, modes={"whole_text": "whole_text"})) as judge:
        judge.warm_up()
        return judge.judge_answers(*([case[key] for case in CASES] for key in ("answer", "gold", "data_source")))


def test_all_but_the_listed_cases_are_decided_as_a_person_would(verdicts):
    assert len(CASES) == 252 and len(OTHERWISE) <= 10
    otherwise = {
        (case["answer"], case["gold"]): verdict
        for case, verdict in zip(CASES, verdicts, strict=True)
        if verdict.is_right != case["right"]
    }
    assert otherwise.keys() == OTHERWISE.keys(), {key: v for key, v in otherwise.items() if key not in OTHERWISE}


def test_a_verdict_of_mathematics_says_which_rule_decided(verdicts):
    rules = {(case["answer"], case["gold"]): verdict.rule for case, verdict in zip(CASES, verdicts, strict=True)}
    assert rules[r"\boxed{\binom{20}{10}}", "184756"] == "not evaluated: combinatorial"
    assert rules[r"\boxed{10 weeks}", "10"] == "unit added"
    assert rules[r"\boxed{2.314814814815 \times 10^{-3}}", r"\frac{1}{432}"] == "rounded"
    assert rules[r"\boxed{\cos 60^\circ}", r"\frac12"] == "evaluated"
