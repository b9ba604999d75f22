r"""Right answers in other notations than their ground truth's: one class a function.

A Problem comes in, texts of answers go out, each of which a person would call right. Run by robustness.py over data
sets, and by the unit tests over a few made-up problems.
"""

import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import gcd

from benchmarks.verdicts.attacks import Problem

Notation = Callable[[Problem, random.Random], Iterator[str]]

_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_SIGNS = str.maketrans("0123456789-+", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺")
_ALL = re.compile(r"\bfind all\b|separated by commas|in any order", re.IGNORECASE)


def e_notation(problem: Problem, rng: random.Random) -> Iterator[str]:
    r"""4500 as 4.5e3 and 4.5 \times 10^{3}."""
    if match := re.fullmatch(r"(-?)([1-9]\d{2,})", problem.gold):
        exponent = len(match[2]) - 1
        digits = match[2].rstrip("0")
        mantissa = match[1] + digits[0] + ("." + digits[1:] if digits[1:] else "")
        yield f"{mantissa}e{exponent}"
        yield f"{mantissa}E+{exponent}"
        yield rf"{mantissa} \times 10^{{{exponent}}}"
        yield rf"{mantissa} \cdot 10^{exponent}" if exponent < 10 else rf"{mantissa} × 10^{{{exponent}}}"


def unicode_signs(problem: Problem, rng: random.Random) -> Iterator[str]:
    r"""− for -, π for \pi, √ for \sqrt, ° for ^\circ, ² for ^2, ∞, ≤, ∪."""
    text = re.sub(r"\^\{?\\circ\}?", "°", problem.gold)
    text = (
        text.replace(r"\pi", "π").replace(r"\infty", "∞").replace("-", "−").replace(r"\cup", "∪").replace(r"\pm", "±")
    )
    text = re.sub(r"\\sqrt\{(\d+)\}|\\sqrt (\d)(?!\d)", lambda m: "√" + (m[1] or m[2]), text)
    text = re.sub(r"\^(?:\{(\d)\}|(\d))(?!\d)", lambda m: (m[1] or m[2]).translate(_SIGNS), text)
    text = re.sub(r"\\leq?(?![a-z])", "≤", text)
    text = re.sub(r"\\geq?(?![a-z])", "≥", text)
    text = re.sub(r"\\cdot(?![a-z])|\\times(?![a-z])", "·", text)
    if text != problem.gold and r"\begin" not in text:
        yield text
    if problem.gold in (r"\frac{1}{2}", r"\frac{1}{4}", r"\frac{3}{4}", r"\frac{1}{3}", r"\frac{2}{3}"):
        yield {"12": "½", "14": "¼", "34": "¾", "13": "⅓", "23": "⅔"}[problem.gold[6] + problem.gold[9]]


def mixed_number(problem: Problem, rng: random.Random) -> Iterator[str]:
    """7/3 as 2 1/3."""
    if (
        (match := _FRACTION.fullmatch(problem.gold))
        and int(match[2]) > int(match[3]) > 1
        and int(match[2]) % int(match[3])
    ):
        whole, rest = divmod(int(match[2]), int(match[3]))
        yield rf"{match[1]}{whole}\frac{{{rest}}}{{{match[3]}}}"
        yield f"{match[1]}{whole} {rest}/{match[3]}"


def set_otherwise(problem: Problem, rng: random.Random) -> Iterator[str]:
    r"""\dfrac, \tfrac, \left, \displaystyle, dollars, spaces, a dot behind."""
    gold = problem.gold
    if "frac" in gold:
        yield re.sub(r"\\frac", r"\\dfrac", gold)
        yield re.sub(r"\\frac", r"\\tfrac", gold)
        yield re.sub(r"\\[dt]?frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", gold)
    yield rf"\displaystyle {gold}"
    yield f"${gold}$" if "$" not in gold else gold
    yield rf"\, {gold} \;"
    yield f"{gold}."
    yield rf"\mathbf{{{gold}}}" if gold.isalnum() else gold
    if re.fullmatch(r"\([^()]*\)", gold):
        yield rf"\left({gold[1:-1]}\right)"
        yield r"\bigl( " + gold[1:-1].replace(",", r",\, ") + r" \bigr)"


def thousands(problem: Problem, rng: random.Random) -> Iterator[str]:
    r"""12345 as 12,345, 12{,}345, 12\,345 and 12 345."""
    if re.fullmatch(r"\d{4,9}", problem.gold):
        yield f"{int(problem.gold):,}"
        for separator in ("{,}", r"\,", r",\!", " ", "~"):
            yield f"{int(problem.gold):,}".replace(",", separator)


def percent(problem: Problem, rng: random.Random) -> Iterator[str]:
    r"""1/4 as 25\%; 28\% without its sign."""
    if match := _FRACTION.fullmatch(problem.gold):
        value = Fraction(int(match[2]), int(match[3] if int(match[3]) else 1)) * 100
        if value.denominator == 1 and value > 0 and value % 100:
            yield rf"{match[1]}{value}\%"
            yield f"{match[1]}{value}%"
            yield f"{match[1]}{value} percent"
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*\\?%", problem.gold):
        yield match[1]
        yield f"{match[1]} percent"


def other_set_order(problem: Problem, rng: random.Random) -> Iterator[str]:
    """A set's elements the other way round, or a list's where the question asks for all."""
    gold = problem.gold.strip()
    match = re.fullmatch(r"(\\\{)([^{}]*)(\\\})|()([^(){}\[\]]*(?:\{[^{}]*\}[^(){}\[\]]*)*)()", gold)
    if match is None or "order" in problem.question or re.search(r"\d{1,3},(?:\\!)?\s?\d{3}|text|=", gold):
        return
    opening, inside, closing = (match[1], match[2], match[3]) if match[1] else ("", match[5], "")
    items = [item.strip() for item in inside.split(",")]
    if len(items) >= 2 and all(items) and (opening or _ALL.search(problem.question)):
        yield opening + ", ".join(reversed(items)) + closing
        yield r"\{" + ", ".join(reversed(items)) + r"\}"


def inequality(problem: Problem, rng: random.Random) -> Iterator[str]:
    """An interval as the inequality of a variable, and a union as two."""
    gold = re.sub(r"\\left|\\right", "", problem.gold).strip()
    parts = [part.strip() for part in gold.split(r"\cup")]
    matches = [re.fullmatch(r"([(\[])\s*([^()\[\],]+),\s*([^()\[\],]+?)\s*([)\]])", part) for part in parts]
    if not all(matches):
        return
    is_interval = any(m[1] == "[" or m[4] == "]" or "infty" in m[0] for m in matches) or len(matches) > 1
    if not is_interval or any("infty" in m[2] and "infty" in m[3] for m in matches):
        return
    descriptions = []
    for m in matches:
        left, right = (r"\le" if m[1] == "[" else "<"), (r"\le" if m[4] == "]" else "<")
        if "infty" in m[2]:
            descriptions.append(f"x {right} {m[3]}")
        elif "infty" in m[3]:
            descriptions.append(f"x {left.replace('<', '>').replace('le', 'ge')} {m[2]}")
        else:
            descriptions.append(f"{m[2]} {left} x {right} {m[3]}")
    yield r" \text{ or } ".join(descriptions)
    yield rf"x \in {gold}"


def named(problem: Problem, rng: random.Random) -> Iterator[str]:
    """x = 5 for 5, and 5 for x = 5."""
    if re.fullmatch(r"-?\d+|-?\\frac\{\d+\}\{\d+\}|-?\d*\\sqrt\{\d+\}", problem.gold):
        yield f"x = {problem.gold}"
        yield f"n={problem.gold}"
    if match := re.fullmatch(r"[a-z]\s*=\s*([^=]+)", problem.gold):
        yield match[1].strip()


def with_unit(problem: Problem, rng: random.Random) -> Iterator[str]:
    """A unit where the ground truth has none, or none where it has one."""
    if re.fullmatch(r"\d+", problem.gold):
        yield rf"{problem.gold} \text{{ {rng.choice(('cm', 'dollars', 'ways', 'square units', 'apples'))}}}"
        yield rf"{problem.gold}\mathrm{{~{rng.choice(('cm', 'kg', 'mph'))}}}"
    elif match := re.fullmatch(r"([\d.]+)\s*\\(?:text|mbox)\{[A-Za-z ]+\}(?:\^\{?\d\}?)?", problem.gold):
        yield match[1]
    elif match := re.fullmatch(r"(\d+)\s*\^\{?\\circ\}?", problem.gold):
        yield rf"{match[1]} \text{{ degrees}}"
        yield match[1]
    elif match := re.fullmatch(r"\\\$\s*([\d.]+)", problem.gold):
        yield match[1]
        yield rf"{match[1]} \text{{ dollars}}"


def decimal(problem: Problem, rng: random.Random) -> Iterator[str]:
    """1/4 as 0.25 and .25, as 1/4 and 2/8; 5 as 5.0."""
    if match := _FRACTION.fullmatch(problem.gold):
        over, under = int(match[2]), int(match[3])
        yield f"{match[1]}{over}/{under}"
        yield rf"\frac{{{match[1]}{over}}}{{{under}}}"
        rest = under // gcd(under, over)
        while rest % 2 == 0:
            rest //= 2
        while rest % 5 == 0:
            rest //= 5
        if rest == 1 and under < 1000:
            yield f"{match[1]}{over / under}"
            yield f"{match[1]}{over / under}".replace("0.", ".", 1)
    elif re.fullmatch(r"-?\d+", problem.gold):
        yield f"{problem.gold}.0"
        yield f"{problem.gold}.00"


def root_otherwise(problem: Problem, rng: random.Random) -> Iterator[str]:
    r"""2\sqrt{3} as \sqrt{12}, 2 \cdot \sqrt{3}, 2\sqrt3, sqrt(12)."""
    if match := re.fullmatch(r"(-?)(\d+)\s*\\sqrt\{(\d+)\}", problem.gold):
        whole = rf"\sqrt{{{int(match[2]) ** 2 * int(match[3])}}}"
        if whole not in problem.question:
            yield match[1] + whole
        yield rf"{match[1]}{match[2]} \cdot \sqrt{{{match[3]}}}"
        yield rf"{match[1]}{match[2]}*sqrt({match[3]})"
        yield rf"{match[1]}\sqrt{{{match[3]}}} \cdot {match[2]}"
    if match := re.fullmatch(r"(\d+)\s*\\pi", problem.gold):
        yield rf"\pi \cdot {match[1]}"
        yield f"{match[1]}pi"
        yield f"{match[1]} π"


def terms_otherwise(problem: Problem, rng: random.Random) -> Iterator[str]:
    """The terms of a sum and the factors of a product in another order; a power times itself."""
    gold = problem.gold.strip()
    if (
        re.fullmatch(r"(?:[-+ 0-9a-z]|\^\d|\^\{\d+\})+", gold)
        and re.search(r"[a-z]", gold)
        and re.search(r"(?<=.)[-+]", gold)
    ):
        terms = re.findall(r"[-+]?[^-+]+", gold.replace(" ", ""))
        text = "".join(term if term[0] in "-+" else "+" + term for term in reversed(terms))
        yield text.removeprefix("+")
    if match := re.fullmatch(r"(\([^()]+\))(\([^()]+\))", gold):
        yield match[2] + match[1]
        yield rf"{match[1]} \cdot {match[2]}"


NOTATIONS: dict[str, Notation] = {
    function.__name__: function
    for function in (
        e_notation, unicode_signs, mixed_number, set_otherwise, thousands, percent, other_set_order, inequality, named,
        with_unit, decimal, root_otherwise, terms_otherwise,
    )
}  # fmt: skip
"""The classes, by name."""
