r"""math-verify's own search for the answer in a whole text, \boxed{...} or not: its boxes, formulas and plain numbers.

The mode "whole_text" of verdict/graders.py, for data whose prompts ask for no box, and for comparison with graders that
work so: it is called as in the NFT authors' verifier.py (after verl's utils/reward_score/math_verify.py); but plain
arithmetic is read by its grammar of LaTeX, not by Python's eval. The caller holds the deadline and the memory limit.
"""

from typing import TYPE_CHECKING, Any

from megatron_nft.types import Verdict
from megatron_nft.verdict.math_answer import compare, silence

if TYPE_CHECKING:
    from math_verify.parser import ExtractionTarget


def whole_text(text: str) -> str | None:
    """The text; None where there is none."""
    return text.strip() or None


def judge_whole_text(answer: str, gold: str) -> Verdict:
    r"""Compares what math-verify finds in the text with a ground truth, such as "3, 5, 7", "\$36" or "\frac12"."""
    return compare(answer, gold, _parse_text, _parse_gold)


def _parse_text(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    return _parse(text, (ExprExtractionConfig(), LatexExtractionConfig()))


def _parse_gold(gold: str) -> list[Any]:
    """In a box, whatever it is: else of "3, 5, 7" one number is found, and of "\\$36" none."""
    from math_verify import LatexExtractionConfig

    return _parse(rf"\boxed{{{gold.strip()}}}", (LatexExtractionConfig(),))


def _parse(text: str, targets: "tuple[ExtractionTarget, ...]") -> list[Any]:
    import math_verify.parser

    silence()
    # math-verify 0.9.0 reads plain arithmetic ("9+1") by sympy's parse_expr, which is Python's eval. Its grammar of
    # LaTeX reads it as well. Remove when ExprExtractionConfig no longer goes through parse_expr.
    math_verify.parser.parse_expr_cached = _arithmetic
    return math_verify.parser.parse(text, targets, parsing_timeout=None)


def _arithmetic(expression: str) -> Any:
    from math_verify.parser import parse_latex_cached

    return parse_latex_cached(expression.strip(" .").replace("**", "^").replace("×", r"\times ").replace("÷", r"\div "))
