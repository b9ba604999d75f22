import random
import re
import time

import pytest

from megatron_nft.verdict.boxes import all_boxed, behind_thought, last_boxed
from megatron_nft.verdict.math_answer import _judge, judge_math, judge_quickly


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"The answer is \boxed{42}.", "42"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{a } b }", r"\text{a } b"),
        (r"\boxed {7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"a \\\boxed{7}", "7"),
        (r"\boxed{x = \boxed{3}}", "3"),
        (r"{ \boxed{4}", "4"),
        (r"} \boxed{4} }", "4"),
        (r"\boxed{5} and then \boxed{6 is cut", "5"),
        (r"\boxed{6 is cut, later \boxed{7}", "7"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"\boxed{}", ""),
        (r"\boxed 5", "5"),
        (r"\fbox{7}", "7"),
        ("\\boxed{5\\ }", "5\\ "),
        (r"\boxed{5", None),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize("piece", [r"\boxed{", "\\", "{", "}", r"\boxed ", r"\boxed{1}", r"\{"])
def test_degenerate_texts_are_scanned_in_linear_time(piece):
    start = time.perf_counter()
    last_boxed(piece * 100_000)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("42", "42"),
        ("42.0", "42"),
        ("1,234", "1234"),
        ("0.5", r"\frac{1}{2}"),
        (r"\dfrac12", r"\frac{1}{2}"),
        ("1/2", r"\boxed{\frac{1}{2}}"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"58,500\;", "58,500"),
        (r"\,58500~\quad", "58,500"),
        (r"$\sqrt{8}$.", r"2\sqrt{2}"),
        (r"x^2\quad", "$x^2$"),
        ("(x+1)^2", "x^2+2x+1"),
        ("x=5", "5"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)"),
        (r"\text{no such thing!?}", r"\text{no such thing!?}"),
        ("10^{9999999}", "10^{9999999}"),  # equal text is never computed
    ],
)
def test_equivalent_answers_are_right(answer, gold):
    assert judge_math(answer, gold).kind == "right"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("41", "42"), ("0.33", r"\frac{1}{3}"), ("(2,1)", "(1,2)"), ("x+1", "x+2"), ("[1,2]", "(1,2)"), ("B", "A")],
)
def test_other_answers_are_wrong(answer, gold):
    verdict = judge_math(answer, gold)
    assert (verdict.kind, verdict.detail) == ("wrong", answer)


def test_the_short_cut_for_plain_numbers_says_what_the_whole_comparison_says():
    rng = random.Random(1)
    forms = ["{0}", "-{0}", "{0}.{1}", "-0.{1}", "{0}/{1}", r"\frac{{{0}}}{{{1}}}", r"-\dfrac{{{1}}}{{{0}}}", "0{0}"]
    numbers = [form.format(rng.choice([1, 2, 3, 25]), rng.choice([1, 2, 5, 50, 500])) for form in forms * 4]
    numbers += ["0", "0/7", "0.333", "1/3", "999999999999999999", "1000000000000000000"]
    pairs = [(rng.choice(numbers), rng.choice(numbers)) for _ in range(150)] + [(n, n + ".0") for n in "123"]
    quick = [(answer, gold, verdict) for answer, gold in pairs if (verdict := judge_quickly(answer, gold)) is not None]
    assert len(quick) > 100
    for answer, gold, verdict in quick:
        assert verdict.is_right == _judge(answer, gold, "").is_right, (answer, gold)


def test_a_window_at_the_end_finds_the_box_that_the_whole_text_has():
    rng = random.Random(2)
    pieces = [r"\boxed{", "{", "}", r"\{", r"\}", "\\", "7", "x" * 50, r"\\boxed{", r"\boxed{3}", "y" * 700]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randrange(40)))
        boxes = all_boxes_read_forwards(text)
        assert last_boxed(text) == (boxes[-1] if boxes else None), text


def all_boxes_read_forwards(text):
    """Contents of all balanced boxes in the order in which they begin, token by token."""
    stack, found = [], []
    for token in re.finditer(r"\\{1,3}boxed\s*\{|\\.|[{}]", text, re.DOTALL):
        if token[0].endswith("{") and token[0] != r"\{":
            stack.append((token.end(), token[0] != "{"))
        elif token[0] == "}" and stack:
            start, is_box = stack.pop()
            if is_box:
                contents = text[start : token.start()].strip()
                ends_in_space = contents.endswith("\\") and not contents.endswith("\\\\")
                found.append((start, contents + " " * ends_in_space))
    return [contents for _, contents in sorted(found)]


def test_all_boxes_of_a_ground_truth():
    assert all_boxed(r"\boxed{2}, \boxed{3} and \boxed{\frac{1}{2}}") == ["2", "3", r"\frac{1}{2}"]
    assert all_boxed(r"\boxed{x = \boxed{3}}") == ["3"]
    assert all_boxed("42") == []


@pytest.mark.parametrize(
    ("text", "opens", "expected"),
    [
        (r"<think>\boxed{7}</think>\boxed{5}", False, r"\boxed{5}"),
        (r"<think>maybe \boxed{7}</think> It is 5.", False, " It is 5."),
        (r"<think>so \boxed{5}, wait", False, None),
        (r"so \boxed{5}, wait", True, None),
        (r"so \boxed{5}</think>\boxed{6}", True, r"\boxed{6}"),
        (r"<think>a</think>b<think>c", False, None),
        (r"\boxed{5}", False, r"\boxed{5}"),
    ],
)
def test_the_answer_stands_behind_the_thought(text, opens, expected):
    assert behind_thought(text, opens) == expected


@pytest.mark.parametrize("answer", ["", r"\frac{", r"\left( 1", "1 + + * ^"])
def test_what_is_no_latex_is_unparsable(answer):
    assert judge_math(answer, "42").kind == "unparsable"


def test_a_ground_truth_that_does_not_parse_is_an_error_not_a_wrong_answer():
    verdict = judge_math("3", "t(0,4]")
    assert verdict.kind == "error"
    assert verdict.detail == "the ground truth does not parse: t(0,4]"
    assert judge_math("t(0,4]", "t(0,4]").kind == "right"


@pytest.mark.parametrize(
    "code", ["__import__('os').system('touch {file}')", "open('{file}', 'w')", r"\text{{open('{file}', 'w')}}"]
)
def test_answers_are_never_evaluated(tmp_path, code):
    file = tmp_path / "made"
    judge_math(code.format(file=file), "42")
    judge_math("42", code.format(file=file))
    assert not file.exists()
