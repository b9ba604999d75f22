r"""Mathematical answers: text -> the last \boxed{...} -> equivalent to the ground truth or not, by math-verify.

Pure functions. verdict/judge.py calls last_boxed in the driver and judge_math in a worker that can be killed: symbolic
comparison may take for ever ("9^{9^{9}}"), holding the interpreter lock, so that no thread and no signal could end it.

Only math-verify's LaTeX parser (a grammar) reads an answer. Its parser of plain expressions goes through sympy's
parse_expr, which is Python's eval; an answer is data and is never evaluated.
"""

import functools
import logging
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from megatron_nft.types import Verdict, VerdictKind

Parser = Callable[[str], list[Any]]
"""A text -> [sympy expression, normalized text]; [text] where it is not understood; [] where there is none."""

MAX_DETAIL_CHARS = 200
MAX_ANSWER_CHARS = 2000
"""A longer answer is not parsed: the longest ground truth of the data sets at hand has 202 characters, and the parser's
time grows faster than the length."""

WARM_UP_PAIRS = (
    (r"\frac{1}{3}", "0.33333333"),
    ("540", "p - q"),
    (r"\sqrt{3} + x^2", r"3\pi"),
    (r"\left(3, \frac{\pi}{2}\right)", "(3, 4)"),
    (r"[1, \frac{5 \pi}{4}]", r"(-\infty, 2) \cup (3, 4)"),
    (r"\{1, 2\}", "1, 3"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ("y = 2x + 1", "x = 5"),
    ("x \\le 2", "1 < x < 2"),
    ("2 + 3i", r"\sin 30^\circ"),
    (r"\text{east}", r"12\%"),
    (r"\log_2 x", r"10,\!080\text{ cm}^2"),
)

# One alternative a token, tried in this order: a box's opening, an escaped character (\{ is no brace), a brace. Models
# also write "\\boxed"; the bound on the backslashes keeps the scan linear on degenerate texts.
_TOKEN = re.compile(r"\\{1,3}boxed\s*\{|\\.|[{}]", re.DOTALL)

_SPACE_BEFORE = re.compile(r"(?:\\(?:[,;:! ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~)+")
_SPACE_BEHIND = re.compile(r"(?:(?<!\\)(?:\\[,;:!]|\\q?quad)|~)$")
_RATIONAL = re.compile(
    r"(-?)(?:([0-9]{1,18}(?:\.[0-9]{1,18})?)|\\[dt]?frac\{([0-9]{1,18})\}\{([0-9]{1,18})\}|([0-9]{1,18})/([0-9]{1,18}))"
)
FAR_APART = 1e-3
"""Unequal rational numbers that are closer are math-verify's to compare: it rounds decimals."""


def last_boxed(text: str) -> str | None:
    r"""Contents of the last \boxed{...} whose braces balance, stripped; None without one. In linear time."""
    open_braces: list[tuple[int, bool]] = []  # (where the contents start, is it a box)
    last: tuple[int, str] | None = None
    for token in _TOKEN.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            open_braces.append((token.end(), token[0] != "{"))
        elif token[0] == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and (last is None or start > last[0]):
                last = (start, text[start : token.start()])
    return last[1].strip() if last else None


def judge_math(answer: str, gold: str) -> Verdict:
    r"""Compares an extracted answer with a ground truth, which may be bare ("42", "\frac{1}{2}") or boxed.

    May run without end or exhaust memory: the caller holds the deadline and the memory limit.

    Returns:
        "right" or "wrong"; "unparsable" where the answer is no LaTeX; "error" where the ground truth is none or the
        comparison itself fails. Text equal to the ground truth is always right.
    """
    boxed_gold = last_boxed(gold)
    gold = gold if boxed_gold is None else boxed_gold
    if len(answer) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return _verdict("unparsable", f"{len(answer)} characters: {answer}")
    answer, gold = _bare(answer), _bare(gold)
    if not answer:
        return Verdict(kind="unparsable", detail="the box is empty")
    if answer == gold:
        return _verdict("right", answer)
    one, other = _rational(answer), _rational(gold)
    if one is not None and other is not None:  # most answers: 100 times as fast as a grammar
        if one == other:
            return _verdict("right", answer)
        if abs(one - other) > FAR_APART:
            return _verdict("wrong", answer)
    return compare(answer, gold, _parse, _parse_gold)


def compare(answer: str, gold: str, parse_answer: Parser, parse_gold: Parser) -> Verdict:
    """The verdict on what math-verify makes of the two texts."""
    try:
        parsed_answer, parsed_gold = parse_answer(answer), parse_gold(gold)
        if _are_equivalent(parsed_gold, parsed_answer):
            return _verdict("right", answer)
    except MemoryError:
        raise  # the pool's: this process is to be replaced
    except Exception as error:
        return _verdict("error", f"{type(error).__name__} while comparing {answer}")
    if not _is_understood(parsed_gold):
        return _verdict("error", f"the ground truth does not parse: {gold}")
    return _verdict("wrong" if _is_understood(parsed_answer) else "unparsable", answer)


def shortened(text: str) -> str:
    """A verdict's detail is for people."""
    return text[:MAX_DETAIL_CHARS]


@functools.cache
def warm_up() -> None:
    """Imports math-verify (1 s) and grades once of each kind (1 s), so that no answer's deadline has to cover this.

    The first comparison of a kind imports more of sympy (its units, from simplify) and fills the parser's tables: 0.3 s
    of CPU where later ones take 0.01, and seconds on a busy machine. Once a process: workers inherit it from preload.
    """
    for answer, gold in WARM_UP_PAIRS:
        judge_math(answer, gold)


def silence() -> None:
    """math-verify warns that timeouts are off. Its own use signal.alarm, which raises in threads; the pool has ours."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)


def _bare(latex: str) -> str:
    """Without spaces and dollars around a formula, and without the dot that ends a sentence.

    To math-verify 0.9.0 58,500 is a number, but with a LaTeX space behind it two.
    """
    latex = _spaceless(_spaceless(latex).removesuffix("."))
    while len(latex) > 2 and latex[0] == latex[-1] == "$" and latex[-2] != "\\":
        latex = _spaceless(latex[1:-1])
    return _spaceless(latex[:-1]) if latex.count("$") == 1 and latex[-1] == "$" and latex[-2:] != r"\$" else latex


def _rational(latex: str) -> Fraction | None:
    """The value of a plain integer, decimal or fraction; None of anything else."""
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


def _spaceless(latex: str) -> str:
    latex = latex.strip()
    while space := _SPACE_BEFORE.match(latex) or _SPACE_BEHIND.search(latex):
        latex = (latex[: space.start()] + latex[space.end() :]).strip()
    return latex


@functools.lru_cache(maxsize=1024)
def _parse_gold(latex: str) -> list[Any]:
    """The answers of a group share it."""
    return _parse(latex)


def _parse(latex: str) -> list[Any]:
    # Imported here since the driver imports this module for last_boxed only.
    from math_verify import LatexExtractionConfig, parse

    silence()
    config = (LatexExtractionConfig(boxed_match_priority=0),)
    return parse(rf"\boxed{{{latex}}}", extraction_config=config, parsing_timeout=None)


def _are_equivalent(parsed_gold: list[Any], parsed_answer: list[Any]) -> bool:
    from math_verify import verify

    # Reversed: the texts are compared before the expressions, which is cheap and cannot fail.
    return verify(parsed_gold[::-1], parsed_answer[::-1], timeout_seconds=None, raise_on_error=True)


def _is_understood(parsed: list[Any]) -> bool:
    return any(not isinstance(part, str) for part in parsed)


def _verdict(kind: VerdictKind, detail: str) -> Verdict:
    return Verdict(kind=kind, detail=shortened(detail))
