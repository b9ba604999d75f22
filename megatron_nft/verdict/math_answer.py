r"""Mathematical answers: an extracted formula and a ground truth come in, a Verdict with the rule that decided it out.

What an answer is (a list, an interval, an equation ...) is read by structure.py, how it compares by same.py, each rule
a function with its reason. math-verify's grammar reads the formulas in it (formula.py). Called in a worker that can be
killed: symbolic comparison may take for ever, holding the interpreter lock, so that no thread and no signal could end
it.

An answer is data and is never evaluated: math-verify's parser of plain expressions, which is Python's eval, is not
used.
"""

import functools
import logging
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from megatron_nft.types import Verdict, VerdictKind
from megatron_nft.verdict import formula
from megatron_nft.verdict.boxes import all_boxed
from megatron_nft.verdict.final import COPIED, IS_A_NUMBER, without_spaces
from megatron_nft.verdict.notation import plain
from megatron_nft.verdict.quantity import read_quantity
from megatron_nft.verdict.same import same
from megatron_nft.verdict.same_values import Comparison
from megatron_nft.verdict.structure import Chain, Leaf, Many, Matrix, Node, Union, Word, read, with_parameter_of

Parser = Callable[[str], list[Any]]
"""A text -> [sympy expression, normalized text]; [text] where it is not understood; [] where there is none."""

MAX_DETAIL_CHARS = 200
MAX_ANSWER_CHARS = 2000
"""A longer answer is not parsed: the longest ground truth of the data sets at hand has 202 characters, and the parser's
time grows faster than the length."""
SAME_TEXT = "same text"
GOLD = "ground truth"
"""The rule of an error that is the ground truth's: grading it again would be in vain."""

WARM_UP_PAIRS = (
    (r"\frac{1}{3}", "0.33333333"),
    (r"\sqrt{3} + x^2", r"3\pi + x^2"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\left(3, \frac{\pi}{2}\right)", "(3, 4\\pi)"),
    (r"(-\infty, 2) \cup (3, 4)", r"x < 2 \text{ or } 3 < x < 4"),
    (r"\{1, \sqrt 2\}", r"\{\sqrt 2, 1\}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ("y = 2x + 1", "2x - y + 1 = 0"),
    (r"2 + 3i + \sin 30^\circ", r"2 + 3i + \sin(x)"),
    (r"\log_2 x", r"10,\!080\text{ cm}^2"),
)

_RATIONAL = re.compile(
    r"(-?)(?:([0-9]{1,18}(?:\.[0-9]{1,5})?)|\\[dt]?frac\{([0-9]{1,18})\}\{([0-9]{1,18})\}|([0-9]{1,18})/([0-9]{1,18}))"
)
_IN_ANY_ORDER = re.compile(
    r"in any order|separated by commas|comma[- ]separated|"
    r"\b(?:find|determine|list|give|enter|what are|compute|solve)\b[^.?]{0,80}?"
    r"\b(?:all|solutions|roots|zeros|the values|possible values|each)\b|solve (?:for|the)",
    re.IGNORECASE,
)
_IN_ORDER = re.compile(
    r"(?:increasing|decreasing|ascending|descending|alphabetical|chronological) order|"
    r"from (?:least|smallest|greatest|largest)|respectively|in the (?:same )?order",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.?!])\s+|\n\n")


def judge_math(answer: str, gold: str, question: str = "") -> Verdict:
    r"""Compares an extracted answer with a ground truth, which may be bare ("42", "\frac{1}{2}") or boxed.

    May run without end or exhaust memory: the caller holds the deadline and the memory limit.

    Args:
        question: what was asked, if it is known: copying its formula is no answer, and it may ask for all of something.

    Returns:
        "right" or "wrong"; "unparsable" where the answer is no LaTeX; "error" where the ground truth is none or the
        comparison itself fails. Text equal to the ground truth is always right. `rule` says what decided.
    """
    boxes = all_boxed(gold)
    gold = r" \text{ or } ".join(boxes) if boxes else gold
    if len(answer) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return _verdict("unparsable", f"{len(answer)} characters: {answer}")
    quick = judge_quickly(answer, gold)
    if quick is not None:
        return quick
    try:
        return _judge(answer, gold, question)
    except MemoryError:
        raise  # the pool's: this process is to be replaced
    except Exception as error:
        if not isinstance(error, ImportError) and why_unreadable(gold) is not None:
            return _verdict("error", f"the ground truth does not parse: {gold}", rule=GOLD)
        return _verdict("error", f"{type(error).__name__} while comparing {answer}")


def judge_quickly(answer: str, gold: str) -> Verdict | None:
    """The verdict where it takes no algebra, as most do; None where it may. Never late: 20 microseconds."""
    answer, gold = answer.strip(), gold.strip()
    if not answer:
        return Verdict(kind="unparsable", detail="the box is empty")
    if answer == gold:
        return _verdict("right", answer, rule=SAME_TEXT)
    one, other = _rational(answer), _rational(gold)
    if one is None or other is None:
        return None
    return _verdict("right" if one == other else "wrong", answer, rule="numbers")


def _judge(answer: str, gold: str, question: str) -> Verdict:
    if not plain(answer):
        return Verdict(kind="unparsable", detail="the box is empty")
    gold_node = read(gold)
    node = with_parameter_of(gold_node, answer)
    if r"\overline" in answer and question and without_spaces(answer) in without_spaces(question):
        return _verdict("wrong", answer, rule=COPIED)  # a decimal that repeats, to be written as a fraction
    comparison = Comparison(question=_searchable(question), in_any_order=asks_for_all(question))
    try:
        if same(gold_node, node, comparison):
            return _verdict("right", answer, rule=", ".join(dict.fromkeys(comparison.rules)) or "same notation")
    except formula.Unreadable:
        pass
    if why_unreadable(gold) is not None:
        return _verdict("error", f"the ground truth does not parse: {gold}", rule=GOLD)
    if comparison.reason in ("", IS_A_NUMBER) and not _is_readable(node):  # other reasons: reading it may take for ever
        return _verdict("unparsable", answer)
    return _verdict("wrong", answer, rule=comparison.reason)


@functools.lru_cache(maxsize=1024)
def asks_for_all(question: str) -> bool:
    """Whether what is asked for has no order: all solutions, values separated by commas."""
    return any(_IN_ANY_ORDER.search(part) and not _IN_ORDER.search(part) for part in _SENTENCE.split(question))


@functools.lru_cache(maxsize=64)
def _searchable(question: str) -> str:
    """In the one notation, for the search of copied formulas. Texts of prompts are longer than formulas, not slower."""
    if not question:
        return ""
    try:
        return without_spaces(plain(question))
    except (ValueError, IndexError):  # a question is prose, whose numbers may be none
        return without_spaces(question)


@functools.lru_cache(maxsize=1024)
def why_unreadable(gold: str) -> str | None:
    """Which formula of a ground truth can't be read; None where all can."""
    try:
        node = read(gold)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for leaf in leaves(node):
        if not leaf.text and isinstance(node, Chain):
            continue  # "= 3"
        try:
            formula.parse(read_quantity(leaf.text).value)
        except formula.Unreadable:
            return leaf.text
    return None


def _is_readable(node: Node) -> bool:
    try:
        for leaf in leaves(node):
            if leaf.text or not isinstance(node, Chain):
                formula.parse(read_quantity(leaf.text).value)
    except formula.Unreadable:
        return False
    return True


def leaves(node: Node) -> list[Leaf]:
    """The formulas that a structure is made of."""
    if isinstance(node, Leaf):
        return [node]
    if isinstance(node, Word):
        return []
    if isinstance(node, Matrix):
        return [leaf for row in node.rows for item in row for leaf in leaves(item)]
    if isinstance(node, Union):
        return [leaf for part in node.parts for leaf in leaves(part)]
    if isinstance(node, Chain):
        return [leaf for side in node.sides for leaf in leaves(side)]
    assert isinstance(node, Many)
    return [leaf for item in node.items for leaf in leaves(item)]


def compare(answer: str, gold: str, parse_answer: Parser, parse_gold: Parser) -> Verdict:
    """The verdict on what math-verify makes of two texts, by its own rules (whole_text.py)."""
    from math_verify import verify

    try:
        parsed_answer, parsed_gold = parse_answer(answer), parse_gold(gold)
        # Reversed: the texts are compared before the expressions, which is cheap and cannot fail.
        if verify(parsed_gold[::-1], parsed_answer[::-1], timeout_seconds=None, raise_on_error=True):
            return _verdict("right", answer, rule="math-verify")
    except MemoryError:
        raise  # the pool's: this process is to be replaced
    except Exception as error:
        return _verdict("error", f"{type(error).__name__} while comparing {answer}")
    if not _is_understood(parsed_gold):
        return _verdict("error", f"the ground truth does not parse: {gold}", rule=GOLD)
    return _verdict("wrong" if _is_understood(parsed_answer) else "unparsable", answer)


def shortened(text: str) -> str:
    """A verdict's detail is for people."""
    return text[:MAX_DETAIL_CHARS]


@functools.cache
def warm_up() -> None:
    """Imports math-verify (1 s) and grades once of each kind (1 s), so that no answer's deadline has to cover this.

    The first comparison of a kind imports more of sympy and fills the parser's tables: 0.3 s of CPU where later ones
    take 0.01, and seconds on a busy machine. Once a process: workers inherit it from preload.
    """
    import math_verify  # noqa: F401

    for answer, gold in WARM_UP_PAIRS:
        judge_math(answer, gold)


def silence() -> None:
    """math-verify warns that timeouts are off. Its own use signal.alarm, which raises in threads; the pool has ours."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)


def _rational(latex: str) -> Fraction | None:
    """The value of a plain integer, short decimal or fraction; None of anything else."""
    match = _RATIONAL.fullmatch(latex)
    if match is None:
        return None
    sign, decimal, *parts = match.groups()
    if decimal is not None:
        value = Fraction(decimal)
    else:
        over, under = (int(part) for part in parts if part is not None)
        if under == 0:
            return None
        value = Fraction(over, under)
    return -value if sign else value


def _is_understood(parsed: list[Any]) -> bool:
    return any(not isinstance(part, str) for part in parsed)


def _verdict(kind: VerdictKind, detail: str, rule: str = "") -> Verdict:
    return Verdict(kind=kind, detail=shortened(detail), rule=rule)
