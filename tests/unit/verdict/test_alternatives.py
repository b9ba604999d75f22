"""Several right answers, and ground truths that are none."""

import json

import pytest

from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.alternatives import alternatives
from megatron_nft.verdict.golds import why_not_taken
from megatron_nft.verdict.judge import Judge

SEVERAL = json.dumps([r"\frac{1}{2}", "0.25", r"x + 1"])


@pytest.fixture(scope="module")
def judge():
    with Judge(VerdictConfig(workers=1)) as judge:
        judge.warm_up()
        yield judge


@pytest.mark.parametrize(
    ("answer", "gold", "source", "kind"),
    [
        (r"\boxed{0.5}", SEVERAL, "math", "right"),
        (r"\boxed{\frac14}", SEVERAL, "math", "right"),
        (r"\boxed{1 + x}", SEVERAL, "math", "right"),
        (r"\boxed{0.75}", SEVERAL, "math", "wrong"),
        (r"\boxed{0.5, 0.25}", SEVERAL, "math", "wrong"),
        (r"\boxed{7}", '["5", "7"]', "math", "right"),
        (r"\boxed{7}", '["5", "7"]', "math_dapo_boxed", "right"),
        (r"\boxed{6}", '["5", "7"]', "math_dapo_boxed", "wrong"),
        ("Answer: 7", '["5", "7"]', "math_dapo", "right"),
        ("#### 7", '["five", "7"]', "openai/gsm8k", "right"),
        ("#### 8", '["five", "7"]', "openai/gsm8k", "wrong"),
        (r"\boxed{[1, 2]}", "[1, 2]", "math", "right"),  # an interval, not a list
        (r"\boxed{1}", "[1, 2]", "math", "wrong"),
        (r"\boxed{nan}", "nan", "math", "error"),
        (r"\boxed{nan}", "nan", "math_dapo_boxed", "error"),
    ],
)
def test_any_of_several_right_answers_will_do(judge, answer, gold, source, kind):
    (verdict,) = judge.judge_answers([answer], [gold], [source])
    assert verdict.kind == kind


def test_a_list_is_looked_at_answer_by_answer():
    assert alternatives("[1, 2]") == ["[1, 2]"] and alternatives('["a"') == ['["a"'] and alternatives('["1"]') == ["1"]
    assert why_not_taken('["5", "7"]', "last_number") is None
    assert why_not_taken('["5", "seven"]', "last_number") == "it is no number"
