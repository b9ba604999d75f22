"""The modes of grading, the data sources that need them, and where modes disagree."""

import json
import subprocess
import sys

import pytest

from megatron_nft.config import RecipeError, VerdictConfig
from megatron_nft.verdict.agreement import compare_modes, gold_lines, read_answers, report
from megatron_nft.verdict.check import check_rewards
from megatron_nft.verdict.dapo_line import dapo_line, judge_dapo_line
from megatron_nft.verdict.graders import DATA_SOURCES, MODES, grader_of
from megatron_nft.verdict.judge import Judge
from megatron_nft.verdict.plain_answer import answer_line, judge_number, last_number, strict_boxed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{ 42 }", " 42 "),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"\boxed{1} or \boxed{2", None),
        (r"\boxed{42}" + "." * 91, None),  # begins 101 characters before the end
        (r"\boxed{42}" + "." * 90, "42"),
        ("42", None),
        (r"\boxed 42", None),
    ],
)
def test_strict_boxed(text, expected):
    assert strict_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so it is 18.", "18"),
        ("3 + 4 = 7 apples\n#### 7\n", "7"),
        ("#### 7 (checked: 7 = 3 + 4)", "7"),
        ("#### 42 dollars for 3 pens", "42"),
        ("#### 4.2e1", "4.2e1"),
        ("#### 41 or 42", None),  # one of them would always be right
        ("#### 4,2", None),
        ("#### 5-42", None),
        ("#### 1/42", "1/42"),
        ("#### \\frac{1}{42}", "1/42"),
        ("#### 10^42", "10^42"),
        ("#### -$5", "-5"),
        ("1 2 3 4 5 42", None),
        ("1 800", "1800"),
        ("10 - 3 = -7", "-7"),
        ("x = −18", "-18"),
        ("range: 10-18", "18"),
        ("$1,234.50 in all", "1234.50"),
        ("about .5", ".5"),
        ("٧ or ７", None),
        ("none", None),
    ],
)
def test_last_number(text, expected):
    assert last_number(text) == expected


def test_numbers_are_compared_exactly():
    assert judge_number("18", "18.0").kind == judge_number("1234", "#### 1,234").kind == "right"
    assert judge_number("18.000000001", "18").kind == judge_number("-18", "18").kind == "wrong"
    assert judge_number("4.2e1", "42").kind == judge_number("1/2", "0.5").kind == "right"
    assert judge_number("1/42", "42").kind == judge_number("2", "1/2").kind == "wrong"
    assert judge_number("10^42", "42").kind == judge_number("1/0", "42").kind == "unparsable"
    assert judge_number("18", "eighteen").kind == "error"
    assert judge_number("1" * 5000, "18").kind == "unparsable"


@pytest.mark.parametrize(
    ("text", "gold", "is_right"),
    [
        ("Answer: 42", "42", True),
        ("Answer:\n42", "42", True),
        ("Answer: 42,", "42", True),
        ("Answer：42", "42", True),
        ("Answer: `42`", "42", True),
        ("Answer: $42$.", "42", True),
        ("Answer: 100 dollars", "100", True),
        ("Answer: 42<|im_end|>", "42", True),
        ("Answer: 34 (by symmetry)", "34", True),
        ("Answer: x = 42", "42", True),
        ("Answer: 1,042", "1042", True),
        ("Answer: 42\nAnswer: 41", "42", False),
        ("Answer: 41 = 42", "42", False),
        ("Answer: x = 41 = 42", "42", False),
        ("Answer: 42_7", "42", False),
        ("Answer: 42\\%", "42", False),
        ("Answer: the final answer is $42$. $41$", "42", False),
        ("Answer: 6\\cdot 7", "42", False),
        ("Answer: \\frac{84}{2}", "42", False),
        (r"\boxed{42}", "42", False),
        ("Answer: 42" + "." * 300, "42", False),
    ],
)
def test_dapo_line(text, gold, is_right):
    line = dapo_line(text)
    assert (line is not None and judge_dapo_line(line, gold).is_right) == is_right


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: 42", "42"),
        ("answer: $\\frac{1}{2}$.\nAs wanted.", "\\frac{1}{2}"),
        ("**Answer:** 42", "42"),
        ("Answer: 1\nNo.\nAnswer: 2", "2"),
        (r"Answer: \boxed{42}", "42"),
        (r"so \boxed{42}", "42"),
        ("Answer:\n", None),
        ("Answer:\n42", "42"),
        ("Answer: 42,", "42"),
        ("Answer：`42`", "42"),
        ("Answer: 42<|im_end|>", "42"),
        ("Answer: 34 (by symmetry)", "34"),
        ("42", None),
    ],
)
def test_answer_line(text, expected):
    assert answer_line(text) == expected


def test_published_data_sources_have_their_modes_and_a_recipe_may_change_them():
    assert grader_of("math500", {}) is MODES["boxed"]
    assert grader_of("openai/gsm8k", {}) is MODES["last_number"]
    assert grader_of("math_dapo", {}) is MODES["dapo_line"]
    assert grader_of("math_dapo_boxed", {}) is MODES["strict_boxed"]
    assert grader_of("math_dapo_boxed", {"math_dapo_boxed": "boxed"}) is MODES["boxed"]
    assert set(DATA_SOURCES.values()) <= set(MODES)


ANSWERS = [r"so \boxed{\frac{2}{4}}", r"so \boxed{\frac{1}{2}}", "so 0.5", "Answer: 1/2", r"\boxed{3}"]
GOLD = r"\frac{1}{2}"


@pytest.fixture(scope="module")
def agreement():
    return compare_modes(ANSWERS, [GOLD] * len(ANSWERS))


def test_every_mode_grades_in_the_pool_by_its_own_rule(agreement):
    kinds = {mode: [verdict.kind for verdict in verdicts] for mode, verdicts in agreement.verdicts.items()}
    assert kinds == {
        "boxed": ["right", "right", "unparsable", "unparsable", "wrong"],
        "strict_boxed": ["wrong", "right", "unparsable", "unparsable", "wrong"],
        "answer_line": ["right", "right", "unparsable", "right", "wrong"],
        "last_number": ["right", "right", "right", "right", "wrong"],
        "dapo_line": ["unparsable", "unparsable", "unparsable", "wrong", "unparsable"],  # as text
        "whole_text": ["right", "right", "right", "right", "wrong"],
    }


def test_agreement_is_counted_and_shown(agreement):
    assert agreement.disputed("boxed", "strict_boxed") == [0]
    assert agreement.disputed("boxed", "answer_line") == [3]
    lines = report(agreement).splitlines()
    assert lines[0] == "5 answers"
    assert "boxed and strict_boxed agree on 80.0%" in lines
    place = lines.index("boxed and answer_line agree on 80.0%")
    assert lines[place + 1].strip().startswith("unparsable / right: gold")


def test_the_report_reads_what_runs_and_evaluations_leave(tmp_path):
    rollouts, samples, other = (tmp_path / name for name in ("rollouts.jsonl", "samples.jsonl", "metrics.jsonl"))
    rollouts.write_text(json.dumps({"answer": r"\boxed{1}", "ground_truth": "1"}) + "\n")
    samples.write_text(
        '{"evaluation": {}}\n' + json.dumps({"answers": [{"text": "2"}, {"text": "3"}], "ground_truth": "3"})
    )
    other.write_text('{"step": 1}\n')
    assert read_answers([str(rollouts), str(samples)]) == ([r"\boxed{1}", "2", "3"], ["1", "3", "3"])
    command = [sys.executable, "-m", "megatron_nft.verdict.agreement"]
    finished = subprocess.run([*command, str(other)], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2 and "has no answers" in finished.stderr
    modes = ["--modes", "strict_boxed", "last_number", "--workers", "1"]
    finished = subprocess.run([*command, str(samples), *modes], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0 and "strict_boxed and last_number agree on 50.0%" in finished.stdout


def test_a_recipe_may_set_modes():
    with Judge(VerdictConfig(workers=1, modes={"shop": "last_number"})) as judge:
        verdicts = judge.judge_answers(["18", "18"], ["18", "18"], ["shop", "math"])
    assert [verdict.kind for verdict in verdicts] == ["right", "unparsable"]


def test_whole_text_pays_no_rewards_unless_it_is_asked_for_by_name():
    with pytest.raises(RecipeError, match="'shop' by whole_text, which is unfit for rewards"):
        check_rewards(VerdictConfig(modes={"shop": "whole_text", "math": "boxed"}), ["math", "shop"])
    check_rewards(VerdictConfig(modes={"shop": "whole_text"}, loose_rewards=["shop"]), ["shop"])
    check_rewards(VerdictConfig(modes={"shop": "whole_text"}), ["math"])  # the shop is held out
    check_rewards(VerdictConfig(), ["math"])


def test_agreement_shows_the_ground_truths_that_a_mode_cannot_take():
    lines = gold_lines(["7", "t(0,4]", "7", "t(0,4]"], ["boxed", "last_number", "strict_boxed"])
    assert lines[0] == "2 ground truths that a mode can't take"
    assert lines[1].startswith("    answer 1: ground truth 't(0,4]' (boxed)")
