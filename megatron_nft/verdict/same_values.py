r"""Two formulas with what stands around them: units, percents, bases, decimals for exact numbers.

Two formulas' texts in the one notation come in, True or False and the deciding rules go out. Called by same.py.
"""

import re
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

from megatron_nft.verdict import formula
from megatron_nft.verdict.final import COPIED, is_literal, why_not_final, without_spaces
from megatron_nft.verdict.quantity import Quantity, read_quantity, words

MIN_ROUNDED_DIGITS = 10
"""A decimal answer for an exact ground truth has so many digits, the last rounded: 0.333333 is not 1/3."""
MIN_GOLD_DIGITS = 6
"""An exact answer for a ground truth of so many digits need only round to it: \\sqrt{2} for 1.414214."""


@dataclass
class Comparison:
    """What one comparison knows, and what it finds out."""

    question: str = ""  # in the one notation, without spaces
    in_any_order: bool = False  # the question asks for all of something
    rules: list[str] = field(default_factory=list)  # those that made the answer right, though it is not the gold's text
    reason: str = ""  # why it is wrong, where that is a rule


def same_quantities(gold_text: str, answer_text: str, comparison: Comparison) -> bool:
    """Two formulas with their units, percents and bases."""
    gold, answer = read_quantity(gold_text), read_quantity(answer_text)
    if gold.base is not None or answer.base is not None:
        return _same_bases(gold, answer, comparison)
    if gold.is_percent or answer.is_percent:
        return _same_percents(gold, answer, comparison)
    factor = _factor(gold, answer, comparison)
    return factor is not None and _same_formulas(gold.value, answer.value, comparison, factor)


def _same_bases(gold: Quantity, answer: Quantity, comparison: Comparison) -> bool:
    """The digits in the ground truth's base; the base itself may be left out, as the question says it."""
    if any(one.unit or one.is_percent or one.is_money for one in (gold, answer)):
        return False
    gold_base, answer_base = gold.base or 10, answer.base or (gold.base or 10)
    if gold.base is not None and answer.base is None:
        comparison.rules.append("base left out")
    return gold_base == answer_base and without_spaces(gold.value) == without_spaces(answer.value)


def _same_percents(gold: Quantity, answer: Quantity, comparison: Comparison) -> bool:
    """50% is 0.5 and 1/2, but not 50; for the ground truth 50% the sign may be left out."""
    if gold.is_percent and answer.is_percent:
        return _same_formulas(gold.value, answer.value, comparison)
    if gold.is_percent:
        comparison.rules.append("percent left out")
        return _same_formulas(gold.value, answer.value, comparison) or _same_formulas(
            gold.value, answer.value, comparison, Fraction(100)
        )
    value = formula.rational(formula.parse(gold.value)) if is_literal(gold.value) else None
    if value is None or (value.denominator == 1 and value not in (0, 1)):
        return False
    return _same_formulas(gold.value, answer.value, comparison, Fraction(1, 100))


def _factor(gold: Quantity, answer: Quantity, comparison: Comparison) -> Fraction | None:
    """What the answer's value is to be multiplied by for the ground truth's unit; None where units differ."""
    gold_has, answer_has = bool(gold.unit or gold.is_money), bool(answer.unit or answer.is_money)
    if gold_has != answer_has:
        comparison.rules.append("unit left out" if gold_has else "unit added")
    if not gold_has or not answer_has:
        return Fraction(1)
    one, other = gold.measure, answer.measure
    if one is not None and other is not None:
        return other[0] / one[0] if one[1] == other[1] else None
    if one is None and other is None and words(gold.unit) & words(answer.unit):
        return Fraction(1)
    return Fraction(1) if words(gold.unit) & words(answer.unit) else None


def _same_formulas(gold: str, answer: str, comparison: Comparison, factor: Fraction = Fraction(1)) -> bool:
    """Two formulas without anything around them."""
    if factor == 1 and without_spaces(gold) == without_spaces(answer):
        return True
    if is_literal(gold) and is_literal(answer):
        return _same_numbers(gold, answer, comparison, factor)
    gold_value = formula.parse(gold)
    is_constant = not getattr(gold_value, "free_symbols", True)
    reason = why_not_final(answer, gold, is_constant, comparison.question)
    if reason == COPIED and factor == 1 and _is_notation(answer, gold, gold_value):
        return True  # the ground truth is in the question, too: 1/x for \frac{1}{x}
    if reason:
        comparison.reason = reason
        return False
    answer_value = formula.parse(answer)
    if factor != 1:
        answer_value = answer_value * formula.exactly(factor)
    if is_constant and _is_decimal(answer) != _is_decimal(gold) and (is_literal(answer) or is_literal(gold)):
        decimal, exact = (answer, gold_value) if is_literal(answer) and _is_decimal(answer) else (gold, answer_value)
        if is_literal(decimal) and _is_decimal(decimal):
            minimum = MIN_ROUNDED_DIGITS if decimal is answer else MIN_GOLD_DIGITS
            return formula.same_value(gold_value, answer_value) or _rounds_to(exact, decimal, minimum, comparison)
    if not formula.same_value(gold_value, answer_value):
        return False
    comparison.rules.append("evaluated")
    return True


def _is_notation(answer: str, gold: str, gold_value: object) -> bool:
    """Whether two formulas are read alike, with nothing computed: sympy computes where the imaginary unit is put in."""
    return (
        not is_literal(gold) and "i" not in re.sub(r"\\[A-Za-z]+", "", answer) and formula.parse(answer) == gold_value
    )


def _same_numbers(gold: str, answer: str, comparison: Comparison, factor: Fraction) -> bool:
    """Written-down numbers are compared exactly; one that is cut after many digits stands for one that has no end."""
    one, other = (formula.rational(formula.parse(text)) for text in (gold, answer))
    if one is None or other is None:
        return formula.same_value(formula.parse(gold), formula.parse(answer))
    if one == other * factor:
        return True
    if factor == 1 and _is_decimal(answer) and not _is_decimal(gold):
        return _rounds_to(formula.exactly(one), answer, MIN_ROUNDED_DIGITS, comparison)
    if factor == 1 and _is_decimal(gold) and not _is_decimal(answer) and other.denominator != 1:
        return _rounds_to(formula.exactly(other), gold, MIN_GOLD_DIGITS, comparison)
    return False


def _is_decimal(text: str) -> bool:
    return bool(re.search(r"\d\.\d", text))


def _rounds_to(exact: object, decimal: str, min_digits: int, comparison: Comparison) -> bool:
    """Whether the decimal is the exact value, rounded or cut at its last digit."""
    mantissa = re.match(r"\s*([-+]?)\s*(\d+\.\d+)", decimal)
    if mantissa is None:
        return False
    digits = mantissa[2].replace(".", "").lstrip("0")
    if len(digits) < min_digits:
        return False
    value = formula.decimal_of(exact, len(digits) + 10)
    shown = formula.rational(formula.parse(decimal))
    if value is None or shown is None:
        return False
    with localcontext() as context:
        context.prec = len(digits) + 20
        ratio = Decimal(shown.numerator) / Decimal(shown.denominator)
        exponent = ratio.adjusted() - len(digits) + 1
        unit = Decimal(1).scaleb(exponent)
        is_rounded = any(
            value.quantize(unit, rounding=how) == ratio.quantize(unit)
            for how in (ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN)
        )
    if is_rounded:
        comparison.rules.append("rounded")
    return is_rounded
