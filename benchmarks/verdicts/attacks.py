r"""Wrong answers that a grader may take for right, made from a problem's ground truth: one class a function.

A Problem comes in, texts of answers go out, each of which is wrong. Pure functions of the problem and a random
generator; run by robustness.py over data sets, and by the unit tests over a few made-up problems.
"""

import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Problem(NamedTuple):
    """A question and its ground truth, as a data set has them."""

    question: str
    gold: str
    source: str = "math"


Attack = Callable[[Problem, random.Random], Iterator[str]]

_NUMBER = re.compile(r"(?<![\d.,_{A-Za-z])\d+(?![\d.,]*\d)")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_ASKS = re.compile(r"compute|evaluate|find|simplify|calculate|what is|express|determine|convert|write", re.IGNORECASE)
_OPERATOR = re.compile(
    r"[-+*/^!]|\\(?:frac|sqrt|cdot|times|binom|sum|prod|int|lim|lfloor|lceil|sin|cos|tan|log|ln|gcd|det)"
)
_LETTER = re.compile(r"(?<![\\A-Za-z{_])([a-zA-Z])(?![A-Za-z{}])")
_UNITS = ("cm", "m", "km", "inches", "feet", "kg", "hours", "minutes", "square units", "degrees", "dollars")


def squeezed(text: str) -> str:
    """Without spaces and what only sets a formula."""
    return (
        re.sub(r"\\left|\\right|\\[dt](?=frac)|\\[,;!: ]|[\s$.]|\\displaystyle", "", text)
        .replace("{", "")
        .replace("}", "")
        .rstrip(".,")
    )


def is_plain_number(gold: str) -> bool:
    """An integer, a decimal or a fraction of integers."""
    return bool(re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\\[dt]?frac\{\d+\}\{\d+\})", gold.strip()))


def copied_formula(problem: Problem, rng: random.Random) -> Iterator[str]:
    """The question's own formula, not evaluated."""
    if not _ASKS.search(problem.question):
        return
    for match in _FORMULA.finditer(problem.question):
        formula = next(group for group in match.groups() if group).strip().rstrip(".,?")
        is_short = 3 < len(formula) < 200 and "=" not in formula and "boxed" not in formula
        is_text = squeezed(formula) in squeezed(problem.gold) or squeezed(problem.gold) == squeezed(formula)
        is_value = re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\\[dt]?frac\{?\d+\}?\{?\d+\}?|\d+/\d+)", formula)
        if is_short and _OPERATOR.search(formula) and not is_text and not is_value and "," not in formula:
            yield formula


def unevaluated(problem: Problem, rng: random.Random) -> Iterator[str]:
    """The number as something that is still to be computed."""
    if re.fullmatch(r"-?\d{1,5}", problem.gold):
        value = int(problem.gold)
        n = rng.randrange(2, 9)
        yield rf"{value - n} + {n}"
        yield rf"\frac{{{value * n * n}}}{{{n}}} \cdot \frac{{1}}{{{n}}}"
        yield rf"\sum_{{k=1}}^{{{n}}} \frac{{{value}}}{{{n}}}"
        yield rf"\int_0^1 {value} dx"
        yield rf"\lfloor {value}.5 \rfloor"
        yield rf"\gcd({abs(value)}, {abs(value) * n})" if value > 0 else rf"{value}^1 \cdot 1"
        yield rf"{value} \cdot \binom{{{n}}}{{0}}"
        yield rf"\lim_{{x \to 0}} ({value} + x)"
        yield rf"\sqrt{{{value * value}}}" if value > 0 else rf"-\sqrt{{{value * value}}}"
        yield rf"\begin{{vmatrix}} {value} & 0 \\ 0 & 1 \end{{vmatrix}}"


def several_candidates(problem: Problem, rng: random.Random) -> Iterator[str]:
    """More than one answer where one is asked for."""
    gold = problem.gold
    if "," in gold or r"\pm" in gold or r"\text" in gold or " or " in gold:
        return
    other = next(changed_number(problem, rng), "0")
    yield f"{gold}, {other}"
    yield rf"{gold} \text{{ or }} {other}"
    yield rf"{other} \text{{ or }} {gold}"
    yield rf"\{{{gold}, {other}\}}"
    yield rf"{other} = {gold}" if is_plain_number(gold) else f"({other}, {gold})"
    yield rf"{gold} \text{{ maybe }} {other}"
    yield rf"{other} \; {gold}" if not gold.startswith("-") and not is_plain_number(gold) else rf"{gold} \pm 1"


def changed_number(problem: Problem, rng: random.Random) -> Iterator[str]:
    """One number is another one."""
    matches = list(_NUMBER.finditer(problem.gold))
    for match in {m.start(): m for m in (matches[:1] + matches[-1:])}.values():
        other = int(match[0]) + rng.choice((1, 2, 10))
        yield problem.gold[: match.start()] + str(other) + problem.gold[match.end() :]


def tiny_difference(problem: Problem, rng: random.Random) -> Iterator[str]:
    """Off by less than a float can tell, or than six decimals show."""
    gold = problem.gold
    if not is_plain_number(gold) and not re.fullmatch(r"-?\d*\\(?:sqrt\{?\d+\}?|pi)", gold):
        return
    yield rf"{gold} + 10^{{-{rng.randrange(16, 60)}}}"
    yield rf"{gold} - \frac{{1}}{{2^{{{rng.randrange(60, 300)}}}}}"
    if re.fullmatch(r"-?\d+", gold):
        yield f"{gold}.{'0' * rng.randrange(6, 20)}1"
        value, big = int(gold), 10 ** rng.randrange(17, 40)
        yield rf"\frac{{{value * big + 1}}}{{{big}}}"
    if match := re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", gold):
        over, under = int(match[2]), int(match[3])
        if under and (over * 10**6) % under:
            yield f"{match[1]}{over / under:.6f}"
            yield f"{match[1]}{over / under:.4f}"


def other_sign(problem: Problem, rng: random.Random) -> Iterator[str]:
    """The negative."""
    gold = problem.gold.strip()
    if re.search(
        r"\\text|\\pm|,|=|<|>|\\le|\\ge|\\in|matrix|cup|_|[A-Za-z]{2}",
        re.sub(r"\\[a-z]?frac|\\sqrt|\\pi|\\circ", "", gold),
    ):
        return
    if re.fullmatch(r"-?0(?:\.0*)?|i|-i", gold) or gold.startswith(("[", "(", r"\left", r"\$", r"\{")):
        return
    if gold.startswith("-") and re.fullmatch(r"-[^-+]*", gold):
        yield gold[1:]
    else:
        yield rf"-{gold}" if not re.search(r"(?<=.)[-+]", gold) else rf"-({gold})"


def other_letter(problem: Problem, rng: random.Random) -> Iterator[str]:
    """Another variable, the letter's other case, or none."""
    gold = problem.gold
    if r"\text" in gold or r"\mbox" in gold or "matrix" in gold or "=" in gold or r"\in" in gold:
        return
    letters = sorted({m[1] for m in _LETTER.finditer(gold)} - set("eidI"))
    if not letters or re.search(r"<|>|\\le|\\ge", gold):
        return
    letter = rng.choice(letters)
    fresh = next(c for c in "wvuqz" if c not in gold)
    yield re.sub(rf"(?<![\\A-Za-z]){letter}(?![A-Za-z])", fresh, gold)
    swapped = re.sub(rf"(?<![\\A-Za-z]){letter}(?![A-Za-z])", letter.swapcase(), gold)
    if swapped.lower() == gold.lower() and swapped != gold:
        yield swapped


def permuted_letters(problem: Problem, rng: random.Random) -> Iterator[str]:
    """A word's or a name's letters in another order."""
    word = re.sub(r"\\text\{\s*\(?([A-Za-z]+)\)?\s*\}|\\angle|\\triangle|\s", r"\1", problem.gold)
    if re.fullmatch(r"[A-Za-z]{2,}", word):
        letters = list(word)
        for _ in range(5):
            rng.shuffle(letters)
            if "".join(letters).lower() != word.lower():
                yield problem.gold.replace(word, "".join(letters))
                yield "".join(letters)
                return


def other_base(problem: Problem, rng: random.Random) -> Iterator[str]:
    """The same digits in another base."""
    if match := re.fullmatch(r"(\d+)_\{?(\d+)\}?", problem.gold):
        yield f"{match[1]}_{{{int(match[2]) + 1}}}"
        yield f"{match[1]}_{{10}}"
        yield f"{match[1]}1_{match[2]}"
    elif re.fullmatch(r"\d+", problem.gold):
        yield f"{problem.gold}_{{{rng.choice((2, 5, 7, 8, 9))}}}"


def other_unit(problem: Problem, rng: random.Random) -> Iterator[str]:
    """Another unit than the ground truth's, or percents."""
    gold = problem.gold
    if match := re.fullmatch(r"(.*?)\s*\\(?:text|mbox)\{\s*([A-Za-z ]+)\}(\^\{?\d\}?)?", gold):
        stem = match[2].strip().rstrip("s").replace("inche", "inch")
        for unit in rng.sample(_UNITS, 4):
            if (
                match[1]
                and stem
                and not unit.startswith(stem[:3])
                and not (stem in ("unit", "square unit") and "unit" in unit)
            ):
                yield rf"{match[1]}\text{{ {unit}}}{match[3] or ''}" if re.search(r"\d", match[1]) else rf"{gold}x"
    elif re.fullmatch(r"\d+\s*\^\{?\\circ\}?", gold):
        number = re.match(r"\d+", gold)[0]
        yield rf"{number} \text{{ radians}}"
        yield rf"{number} \text{{ cm}}"
    elif re.fullmatch(r"\d+", gold) and gold not in ("0", "1"):
        yield rf"{gold}\%"
        yield rf"{int(gold) * 100}\%"
        yield f"{gold}m"
        yield f"{gold}x"


def other_order(problem: Problem, rng: random.Random) -> Iterator[str]:
    """A pair's elements, or a list's that the question wants in an order, exchanged."""
    gold = re.sub(r"\\left|\\right", "", problem.gold).strip()
    if match := re.fullmatch(r"([(\[])([^()\[\]]*)([)\]])", gold):
        items = match[2].split(",")
        if len(items) >= 2 and len({item.strip() for item in items}) == len(items):
            items[0], items[-1] = items[-1], items[0]
            yield match[1] + ",".join(items) + match[3]
    elif match := re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", gold, re.DOTALL):
        rows = match[1].replace(r"\phantom -", "-").split(r"\\")
        if len(rows) >= 2 and rows[0].strip() != rows[1].strip():
            rows[0], rows[1] = rows[1], rows[0]
            yield r"\begin{pmatrix}" + r"\\".join(rows) + r"\end{pmatrix}"


def other_bracket(problem: Problem, rng: random.Random) -> Iterator[str]:
    """An end of an interval open that is closed, or the other way round."""
    gold = re.sub(r"\\left|\\right", "", problem.gold).strip()
    if re.fullmatch(r"[(\[][^()\[\],]*,[^()\[\],]*[)\]]", gold) and (
        gold[0] == "[" or gold[-1] == "]" or "infty" in gold
    ):
        yield ("(" if gold[0] == "[" else "[") + gold[1:]
        yield gold[:-1] + ("]" if gold[-1] == ")" else ")")


def part_of_it(problem: Problem, rng: random.Random) -> Iterator[str]:
    """An element, a term or a side left out, or one twice."""
    gold = problem.gold.strip()
    inside = re.fullmatch(r"(\\\{|)([^(){}\[\]]*)(\\\}|)", gold)
    if inside and "," in inside[2] and not re.search(r"\d{1,3},(?:\\!)?\s?\d{3}", gold) and "text" not in gold:
        items = [item.strip() for item in inside[2].split(",")]
        if all(items):
            yield inside[1] + ", ".join(items[:-1]) + inside[3]
            yield inside[1] + ", ".join([*items, "17"]) + inside[3]
            if not inside[1]:
                yield ", ".join([*items, items[0]])
    elif match := re.fullmatch(r"([^()\[\]=<>{}]*\d[^()\[\]=<>{}]*[a-z][^()\[\]=<>{}]*?)\s*[-+]\s*[^-+()={}]+", gold):
        yield match[1]
    if match := re.fullmatch(r"([^=<>]*[-+][^=<>]*)=([^=<>]*)", gold):
        yield match[2]
    if "cup" in gold:
        yield gold.split(r"\cup")[0]


def false_equation(problem: Problem, rng: random.Random) -> Iterator[str]:
    """An equation whose last side is the ground truth, and which is not true."""
    if is_plain_number(problem.gold):
        other = rng.randrange(2, 99)
        if str(other) != problem.gold:
            yield rf"{other} = {problem.gold}"
            yield rf"x = {other} = {problem.gold}"
            yield rf"{other} \approx {problem.gold}"


ATTACKS: dict[str, Attack] = {
    function.__name__: function
    for function in (
        copied_formula, unevaluated, several_candidates, changed_number, tiny_difference, other_sign, other_letter,
        permuted_letters, other_base, other_unit, other_order, other_bracket, part_of_it, false_equation,
    )
}  # fmt: skip
"""The classes, by name. Each function's first line says what is wrong with its answers."""
