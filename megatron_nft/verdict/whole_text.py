r"""math-verify's own search for the answer in a whole text, \boxed{...} or not: its boxes, formulas and plain numbers.

The mode "whole_text" of verdict/graders.py, for data whose prompts ask for no box, and for comparison with graders that
work so (verl's). The caller holds the deadline and the memory limit.
"""

import re
from typing import Any

from megatron_nft.types import Verdict
from megatron_nft.verdict.boxes import last_boxed
from megatron_nft.verdict.math_answer import compare, silence

_PLAIN_NUMBER = re.compile(r"[-+0-9.,/ %]+")


def whole_text(text: str) -> str | None:
    """The text; None where there is none."""
    return text.strip() or None


def judge_whole_text(answer: str, gold: str) -> Verdict:
    r"""Compares what math-verify finds in the text with a ground truth: bare, boxed, or between dollars."""
    return compare(answer, gold, _parse_text, _parse_gold)


def _parse_gold(gold: str) -> list[Any]:
    r"""math-verify finds formulas between marks, and plain numbers; anything else is given a box."""
    gold = gold.strip()
    is_marked = last_boxed(gold) is not None or any(mark in gold for mark in ("$", r"\(", r"\["))
    return _parse_text(gold if is_marked or _PLAIN_NUMBER.fullmatch(gold) else rf"\boxed{{{gold}}}")


def _parse_text(text: str) -> list[Any]:
    import math_verify.parser
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    silence()
    # math-verify 0.9.0 reads plain arithmetic ("9+1") by sympy's parse_expr, which is Python's eval. Its grammar of
    # LaTeX reads it as well. Remove when ExprExtractionConfig no longer goes through parse_expr.
    math_verify.parser.parse_expr_cached = _arithmetic
    return parse(text, (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()), parsing_timeout=None)


def _arithmetic(expression: str) -> Any:
    from math_verify.parser import parse_latex_cached

    return parse_latex_cached(expression.strip(" .").replace("**", "^").replace("×", r"\times ").replace("÷", r"\div "))
