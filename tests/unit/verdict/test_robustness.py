"""A few of the benchmark's attacks and notations, on made-up problems: none right, none refused."""

import pytest

from benchmarks.verdicts.attacks import ATTACKS, Problem
from benchmarks.verdicts.notations import NOTATIONS
from benchmarks.verdicts.robustness import grade, make
from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.golds import check_golds
from megatron_nft.verdict.judge import Judge

PROBLEMS = [
    Problem(r"Compute $\binom{9}{4} - 5$.", "121"),
    Problem(r"Evaluate $\sum_{k=1}^{20} k^3$.", "44100"),
    Problem(r"Find the probability that $x^2 + 3x > 1$.", r"\frac{1}{4}"),
    Problem(r"Compute $\frac{2}{3} + 2$.", r"\frac{8}{3}"),
    Problem(r"Compute $\sin 120^\circ + \cos 30^\circ$.", r"\sqrt{3}"),
    Problem("How long is the diagonal?", r"5\sqrt{2}"),
    Problem("Find all $x$ with $x^2 + x = 6$, separated by commas.", "-3, 2"),
    Problem("For which $x$ is $f$ defined?", r"(-\infty, 2) \cup [5, \infty)"),
    Problem("Find the domain.", "[-1, 4)"),
    Problem("Expand $(x+2)(x-5)$.", "x^2 - 3x - 10"),
    Problem("Factor $n^2 - 9$.", "(n-3)(n+3)"),
    Problem("Where do they meet?", r"\left(3, -\frac{1}{2}\right)"),
    Problem("What is it in base six?", "243_6"),
    Problem("How high is it?", r"12 \text{ cm}"),
    Problem("What is the angle?", r"75^\circ"),
    Problem("Who wins?", r"\text{Marta}"),
    Problem("Which angle is larger?", r"\angle PQR"),
    Problem("Find the line.", "y = 3x - 1"),
    Problem("Compute $2^3 \\pi$.", r"8\pi"),
    Problem("Find the set.", r"\{2, 3, 7\}"),
    Problem("What share is it?", r"35\%"),
    Problem("Find the vector.", r"\begin{pmatrix} 1 \\ -4 \end{pmatrix}"),
    Problem("How many are there?", "1234567"),
    Problem("What does it cost?", r"\$18.50"),
    Problem("Find $z$.", "3 - 4i"),
]


@pytest.fixture(scope="module")
def judge():
    with Judge(VerdictConfig(workers=2, deadline_s=10)) as judge:
        judge.warm_up()
        yield judge


@pytest.mark.parametrize("with_questions", [True, False])
def test_no_attack_is_right(judge, with_questions):
    made = make(ATTACKS, PROBLEMS, each=25, seed=1)
    assert {name for name, _, _ in made} == set(ATTACKS) and len(made) > 150
    verdicts = grade(made, judge, with_questions)
    right = [one for one, verdict in zip(made, verdicts, strict=True) if verdict.is_right]
    # Without its question a formula that is copied from there is a formula like any other, but for numbers.
    allowed = () if with_questions else ("copied_formula",)
    assert [one for one in right if one[0] not in allowed] == []
    assert len(right) <= 5


def test_no_right_answer_in_another_notation_is_refused(judge):
    made = make(NOTATIONS, PROBLEMS, each=25, seed=1)
    assert {name for name, _, _ in made} == set(NOTATIONS) and len(made) > 100
    verdicts = grade(made, judge, with_questions=True)
    assert [(one, v) for one, v in zip(made, verdicts, strict=True) if not v.is_right] == []


def test_ground_truths_are_checked_before_a_run():
    rows = [
        ("a/0", "42", "boxed"),
        ("a/1", "t(0,4]", "boxed"),
        ("a/2", r"\frac{1}{2}", "last_number"),
        ("a/3", "", "strict_boxed"),
        ("a/4", "no number", "last_number"),
        ("a/5", r"\boxed{2}, \boxed{3}", "boxed"),
        ("a/6", "4.5e33", "boxed"),
        ("a/7", r"\text{east}", "boxed"),
        ("a/8", "anything", "my:grader"),
    ]
    problems = check_golds(rows)
    assert [(p.row, p.taken_by) for p in problems] == [("a/1", "strict_boxed"), ("a/3", ""), ("a/4", "boxed")]
    assert str(problems[0]) == (
        "a/1: ground truth 't(0,4]' (boxed): 't(0,4]' is no formula; verdict.modes \"strict_boxed\" would take it"
    )
    assert check_golds([(row, problem.gold, "boxed") for row, problem in zip("ab" * 20, PROBLEMS, strict=False)]) == []
