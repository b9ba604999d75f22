r"""Formulas as sympy's, and whether two have the same value: exactly where they are numbers.

A formula's text in the one notation comes in, a sympy expression goes out; `same_value` compares two. Called by
same.py, in a worker: any of it may take for ever or all memory (verdict/pool.py holds both limits).

math-verify's grammar (latex2sympy2_extended 1.11) reads the text. math-verify's own comparison rounds to 6 decimals
and 15 digits, so that 10^{-20} is 10^{-30}; it is asked only about what is no number and no formula of letters.
"""

import functools
import random
import re
from fractions import Fraction
from typing import Any

DIGITS = 60
"""In which constants are compared at first; then in as many as their integers have, twice, and this many more."""
MAX_DIGITS = 4000
MAX_BITS = 1 << 20
"""Of a rational number that is computed exactly."""
NUM_POINTS = 3

_DECIMAL = re.compile(r"(?<![\d.])(\d+)\.(\d+)")
_LETTER = re.compile(r"\\[A-Za-z]+|_\{[^{}]*\}|[iI]")
"""A command, a subscript, or a letter that may be the imaginary unit."""
_UNIT = r"\iota"
"""Stands for the imaginary unit until the text is parsed."""
_INDEXED = re.compile(r"_\{?i\b|\\(?:sum|prod)_\{?i")


class Unreadable(Exception):
    """The text is no formula."""


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Any:
    """The sympy expression, unevaluated; numbers in it are exact, i is the imaginary unit.

    Raises:
        Unreadable: the grammar does not read it.
    """
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    text = _grammatical(text)
    try:
        parsed = latex2sympy(
            text,
            is_real=True,
            convert_degrees=True,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {text}") from None
    if parsed is None or isinstance(parsed, str | bool | list):
        raise Unreadable(text)
    return parsed.xreplace({sympy.Symbol("iota", real=True): sympy.I}) if _UNIT in text else parsed


def _grammatical(text: str) -> str:
    """What the grammar reads otherwise than a person does."""
    text = re.sub(r"\\text\{\s*([A-Za-z])\s*\}", r"\1", text)
    text = _DECIMAL.sub(lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    unit = "i" if _INDEXED.search(text) else rf" {_UNIT} "
    # To the grammar I is the imaginary unit (whose powers it drops), and i a letter.
    text = _LETTER.sub(lambda match: {"I": r"\tilde{I}", "i": unit}.get(match[0], match[0]), text)
    text = re.sub(r"([)}\d])\s*\\frac", r"\1 \\frac", text)
    return re.sub(r"\\%", "", text).replace(r"\$", "").strip()


def rational(expression: Any) -> Fraction | None:
    """The exact value of what is made of integers by + - * / and whole powers; None of anything else, or too long."""
    import sympy

    if expression.is_Rational:
        return Fraction(int(expression.p), int(expression.q))
    if expression.is_Float:
        return Fraction(str(expression))
    if isinstance(expression, sympy.UnevaluatedExpr):
        return rational(expression.args[0])
    if isinstance(expression, sympy.factorial):
        return _factorial(rational(expression.args[0]))
    if not isinstance(expression, sympy.Add | sympy.Mul | sympy.Pow):
        return None
    values = [rational(argument) for argument in expression.args]
    if any(value is None for value in values):
        return None
    if isinstance(expression, sympy.Pow):
        return _power(*values)
    total = values[0]
    for value in values[1:]:
        total = total + value if isinstance(expression, sympy.Add) else total * value
        if _bits(total) > MAX_BITS:
            return None
    return total


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        return None
    if base not in (0, 1, -1) and _bits(base) * abs(exponent) > MAX_BITS:
        return None
    return base ** (int(exponent) % 2 if base in (1, -1) else int(exponent))


def _factorial(value: Fraction | None) -> Fraction | None:
    import math

    if value is None or value.denominator != 1 or not 0 <= value <= 5000:
        return None
    return Fraction(math.factorial(int(value)))


def same_value(gold: Any, answer: Any) -> bool:
    """Whether two expressions are equal: rationals and constants at any size, formulas of letters as functions."""
    import sympy

    if gold == answer:
        return True
    if not isinstance(gold, sympy.Expr) or not isinstance(answer, sympy.Expr):
        return by_math_verify(gold, answer)
    if any(one.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) for one in (gold, answer)):
        return gold.doit() == answer.doit()
    one, other = rational(gold), rational(answer)
    if one is not None and other is not None:
        return one == other
    gold, answer = _with_symbols(gold), _with_symbols(answer)
    letters = gold.free_symbols | answer.free_symbols
    if gold.has(*_open_ended()) or answer.has(*_open_ended()):
        return by_math_verify(gold, answer)
    if not letters:
        return _same_constant(gold, answer)
    return _same_function(gold, answer, sorted(letters, key=str))


def _open_ended() -> tuple[type, ...]:
    import sympy

    return (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


def _with_symbols(expression: Any) -> Any:
    """f(x) of an unknown f is a letter like any other."""
    from sympy import Symbol
    from sympy.core.function import AppliedUndef

    applied = expression.atoms(AppliedUndef)
    if not applied:
        return expression
    return expression.xreplace({call: Symbol(str(call).replace(" ", ""), real=True) for call in applied})


def _same_constant(gold: Any, answer: Any) -> bool:
    if not _are_close(*_values((gold, answer), DIGITS, {}), DIGITS - 15):
        return False
    digits = min(MAX_DIGITS, DIGITS + _length(gold) + _length(answer))
    return _are_close(*_values((gold, answer), digits, {}), digits - 15)


def _length(expression: Any) -> int:
    """Decimal digits of all integers in it, with the powers that they are raised to."""
    import sympy

    digits = sum(len(str(abs(n.p))) + len(str(n.q)) for n in expression.atoms(sympy.Rational))
    for power in expression.atoms(sympy.Pow):
        exponent = rational(power.exp)
        base = rational(power.base)
        if exponent is not None and base is not None and abs(exponent) < MAX_BITS:
            digits += int(abs(exponent) * _bits(base) * Fraction(3, 10))
    return 2 * digits


def _same_function(gold: Any, answer: Any, letters: list[Any]) -> bool:
    """Equal at a few points of either sign; of negative ones only where roots of letters are real."""
    import sympy

    rng = random.Random(f"{gold}|{answer}")
    is_rooted = any(
        power.free_symbols and not power.exp.is_integer for e in (gold, answer) for power in e.atoms(sympy.Pow)
    ) or any(e.has(sympy.log) for e in (gold, answer))
    signs = (1, -1, -1)
    found = 0
    for attempt in range(4 * NUM_POINTS):
        sign = signs[attempt % len(signs)]
        point = {letter: sign * sympy.Rational(rng.randint(10**6, 10**8), 10**7 + 19) for letter in letters}
        values = _values((gold, answer), 40, point)
        if any(value is None for value in values):
            continue
        if is_rooted and sign < 0 and any(value[1] != 0 for value in values):
            continue  # which of its values a root of a negative number has is a convention
        if not _are_close(*values, 25):
            return False
        found += 1
        if found == NUM_POINTS:
            return True
    return found > 0


def _values(expressions: tuple[Any, ...], digits: int, point: dict[Any, Any]) -> list[Any]:
    """Numbers of so many digits; None of what has no value there."""
    import sympy

    values = []
    for expression in expressions:
        value = (
            expression.evalf(digits, subs=point, maxn=max(400, 3 * digits))
            if point
            else expression.evalf(digits, maxn=3 * digits)
        )
        is_number = value.is_number and not value.has(sympy.nan, sympy.zoo, sympy.oo, sympy.I * sympy.oo)
        real, imaginary = value.as_real_imag() if is_number else (None, None)
        is_number = is_number and real.is_Number and imaginary.is_Number
        values.append((real, imaginary) if is_number else None)
    return values


def _are_close(one: Any, other: Any, digits: int) -> bool:
    if one is None or other is None:
        return False
    size = max(abs(part) for part in (*one, *other))
    gap = max(abs(a - b) for a, b in zip(one, other, strict=True))
    return bool(gap <= size * 10 ** (-digits))


def by_math_verify(gold: Any, answer: Any) -> bool:
    """What is no formula of numbers and letters: sums, relations, sets of sympy's."""
    from math_verify import verify

    return verify(gold, answer, timeout_seconds=None, raise_on_error=False, allow_set_relation_comp=True)


def are_proportional(gold: Any, answer: Any) -> bool:
    """Whether one is the other times a number that is not 0: both are 0 at the same places."""
    import sympy

    gold, answer = _with_symbols(gold), _with_symbols(answer)
    letters = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if gold.free_symbols != answer.free_symbols or gold.has(*_open_ended()) or answer.has(*_open_ended()):
        return by_math_verify(sympy.Eq(gold, 0, evaluate=False), sympy.Eq(answer, 0, evaluate=False))
    rng, ratios = random.Random(f"{gold}|{answer}"), []
    for _ in range(4 * NUM_POINTS):
        point = {letter: sympy.Rational(rng.randint(10**6, 10**8), 10**7 + 19) for letter in letters}
        one, other = _values((gold, answer), 40, point)
        if one is None or other is None or one[0] == 0 or other[0] == 0:
            continue
        ratios.append(one[0] / other[0])
        if len(ratios) == NUM_POINTS:
            break
    return bool(ratios) and all(abs(ratio - ratios[0]) <= abs(ratios[0]) * 10**-20 for ratio in ratios)


def exactly(value: Fraction) -> Any:
    """As a sympy number."""
    import sympy

    return sympy.Rational(value.numerator, value.denominator)


def decimal_of(expression: Any, digits: int) -> Any:
    """A real number's value as a Decimal of so many digits; None of anything else."""
    from decimal import Decimal

    (value,) = _values((expression,), digits, {})
    return None if value is None or value[1] != 0 else Decimal(str(value[0]))
