r"""Whether an answer is final, or leaves the question's work to the grader: \binom{20}{10} for 184756.

Texts of an answer and of its ground truth in the one notation come in, a reason or none goes out. Called by same.py
before anything is computed. A policy that is paid for formulas learns to copy the question's.
"""

import re

HEAVY: dict[str, str] = {
    "sum": r"\\(?:sum|Sigma_|bigoplus)",
    "product": r"\\prod",
    "integral": r"\\i*int(?![A-Za-z])|\\oint",
    "limit": r"\\lim",
    "determinant": r"\\det|\{[vV]matrix\}",
    "rounding": r"\\[lr]?floor|\\[lr]?ceil|\\operatorname\{(?:floor|ceil)",
    "divisor": r"\\gcd|\\lcm|\\(?:text|operatorname)\{\s*(?:gcd|lcm)",
    "combinatorial": r"\\(?:binom|Gamma)|!|\{\}_|[CP]_\{",
    "remainder": r"\\[bp]?mod|\\(?:text|operatorname)\{\s*mod",
    "derivative": r"\\partial|\\frac\{d\}|\\frac\{d[^{}]*\}\{d[A-Za-z]|'",
    "extremum": r"\\(?:max|min|sup|inf|arg)(?![A-Za-z])",
    "count": r"\\(?:phi|varphi|sigma|tau|pi)\s*\(\s*\d",
    "conjugate": r"\\overline",
    "value": r"\\(?:tr|Re|Im|deg|operatorname|text)(?![A-Za-z])|\\left\.|\|_",
}
"""What is to be evaluated -> its signs. Allowed where the ground truth has one of the same kind."""
TRANSCENDENTAL = r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![A-Za-z])"
LOGARITHM = r"\\(?:log|ln|lg|exp)(?![A-Za-z])"
ONE_VALUE = re.compile(
    r"-?\s*\\(?:sin|cos|tan)\s*\(?\s*\d{1,3}\s*\^\\circ\s*\)?|-?\s*i\s*\^\{\d+\}|"
    r"-?\s*i\s*\([^()]*\)|e\s*\^\{[^{}]*i[^{}]*\}|(?:\([^()\\]*i[^()\\]*\)\s*(?:\^\{\d+\})?\s*){1,2}"
)
"""What may be somebody's notation of a number, where no question is known from which it could be copied: a sine of
degrees, a power of i, a product of complex numbers."""
COPIED = "not evaluated: copied from the question"
IS_A_NUMBER = "not evaluated: the ground truth is a number"

_HEAVY = {kind: re.compile(signs) for kind, signs in HEAVY.items()}
_NUMBER = r"(?:\d+(?:\.\d+)?)"
_POWER_OF_TEN = rf"(?:{_NUMBER}\s*(?:\\times|\\cdot)\s*)?10\s*\^\{{-?\d+\}}"
_FRACTION = rf"(?:{_NUMBER}\s*)?(?:\\frac\s*\{{[-+]?{_NUMBER}\}}\s*\{{[-+]?{_NUMBER}\}}|{_NUMBER}\s*/\s*{_NUMBER})"
LITERAL = re.compile(
    rf"[-+]?\s*(?:{_POWER_OF_TEN}|{_FRACTION}|{_NUMBER})|[-+]?\s*\(\s*[-+]?(?:{_FRACTION}|{_NUMBER})\s*\)"
)
"""A rational number as it is written down: 3, -0.5, 1/2, 2\frac{1}{3}, 4.5 \times 10^{3}."""
MANY_DIGITS = 10
"""A decimal ground truth that long is a rounded one: \\sqrt{17} is the better answer."""


def is_literal(text: str) -> bool:
    """Whether the text is a rational number, written down."""
    return bool(LITERAL.fullmatch(text.strip()))


def why_not_final(answer: str, gold: str, gold_is_constant: bool, question: str) -> str | None:
    """The reason, or None.

    Args:
        gold_is_constant: the ground truth is a number.
        question: in the one notation, without spaces; "" if it is not known.
    """
    if is_literal(answer):
        return None
    for kind, signs in _HEAVY.items():
        if signs.search(answer) and not signs.search(gold):
            return f"not evaluated: {kind}"
    bare, bare_gold = without_spaces(answer), without_spaces(gold)
    if bare == bare_gold:
        return None
    if question and len(bare) > 2 and not bare.isalnum() and bare in question:
        return COPIED
    may_be_notation = not question and ONE_VALUE.fullmatch(answer.strip()) is not None
    if is_literal(gold) and len(re.sub(r"\D", "", gold)) < MANY_DIGITS:
        return None if may_be_notation else IS_A_NUMBER
    if gold_is_constant and not may_be_notation:
        for signs in (TRANSCENDENTAL, LOGARITHM):
            if re.search(signs, answer) and not re.search(signs, gold):
                return "not evaluated: a function that the ground truth has not"
    return None


def without_spaces(text: str) -> str:
    """For comparing texts: spaces and braces around single signs say nothing."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s+|\\cdot(?![A-Za-z])|\\times(?![A-Za-z])", "", text))
