r"""Answers compared as texts or as plain numbers, without algebra: DAPO's strict box, answer lines, the last number.

Pure functions in linear time; verdict/graders.py makes modes of them.
"""

import re
from fractions import Fraction

from megatron_nft.types import Verdict
from megatron_nft.verdict.boxes import last_boxed
from megatron_nft.verdict.math_answer import GOLD, MAX_ANSWER_CHARS, shortened

STRICT_TAIL_CHARS = 100
"""Of a text that the strict mode looks at, as in DAPO's grader (verl's math_dapo.py)."""
NUMBER_TAIL_CHARS = 4000
"""Of a text in which a last number is looked for, and then in all of it."""

BOX = r"\boxed{"
_ANSWER_LINE = re.compile(r"answer[ \t*]*[:：][ \t*]*\n*([^\n]*)", re.IGNORECASE)
_END_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</s>|<eos>")

# ASCII digits: \d would take any script's. A hyphen behind a digit or a letter is a range's, not a sign.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,3}(?: [0-9]{3})+(?![0-9 ])|[0-9]+)"
_NUMBER = re.compile(
    rf"(?:(?<![0-9A-Za-z)])-\s?)?\\?\$?(?:\\[dt]?frac\{{-?[0-9]+\}}\{{[0-9]+\}}|(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]{1,4}(?![0-9A-Za-z]))?(?:\s?/\s?[0-9]+)?)(?:\s?\^\s?\{?-?[0-9]+\}?)?"
)
_ANOTHER = re.compile(rf"\s*(?:,|or\b|and\b|[-+*=^]|\s)\s*(?={_NUMBER.pattern})")


def strict_boxed(text: str) -> str | None:
    r"""Contents of the last \boxed{ within the last 100 characters; None if it isn't closed.

    Every brace counts, escaped or not. An earlier box is no answer.
    """
    tail = text[-STRICT_TAIL_CHARS:]
    start = tail.rfind(BOX)
    if start < 0:
        return None
    contents, depth = tail[start + len(BOX) :], 1
    for place, character in enumerate(contents):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return contents[:place]
    return None


def judge_same_text(answer: str, gold: str) -> Verdict:
    """Right if the two are the same characters, but for spaces around them."""
    return Verdict(kind="right" if answer.strip() == gold.strip() else "wrong", detail=shortened(answer))


def answer_line(text: str) -> str | None:
    """What the last line "Answer: ..." says, or the line below it; without one, the last box."""
    lines = _ANSWER_LINE.findall(text)
    line = _END_TOKEN.sub("", lines[-1]).strip() if lines else ""
    if not line:
        return last_boxed(text)
    boxed = last_boxed(line)
    if boxed is not None:
        return boxed if not re.search(r"\d", line.partition(r"\boxed")[0]) else line
    return re.sub(r"(?<=[\d}$)`])\s+\([^()$]*[A-Za-z]{2}[^()$]*\)$", "", line.rstrip(".*, ")).strip("$ \t`*")


def last_number(text: str) -> str | None:
    """The first number after the last "####" (GSM8K's mark), or else the text's last; None where there is a choice.

    "41 or 42" behind the mark, and numbers in a row, are no answer: one of them would always be right.
    """
    text = text.replace("−", "-").replace("–", "-")
    _, mark, marked = text.rpartition("####")
    if mark and (match := _NUMBER.search(marked)):
        return None if _ANOTHER.match(marked, match.end()) else _bare_number(match[0])
    for tail in (text[-NUMBER_TAIL_CHARS:], text):
        matches = list(_NUMBER.finditer(tail))
        if len(matches) > 1 or (matches and tail is text):
            between = tail[matches[-2].end() : matches[-1].start()] if len(matches) > 1 else "."
            return None if re.fullmatch(r"\s+|,", between) else _bare_number(matches[-1][0])
    return None


def _bare_number(number: str) -> str:
    number = re.sub(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}", r"\1/\2", number)
    return re.sub(r"[,$\s\\]", "", number)


def judge_number(answer: str, gold: str) -> Verdict:
    """Compares exactly: 18, 18.0 and 36/2 are the same, 18 and 18.001 are not."""
    gold_value = _value(_bare_number(gold.rpartition("####")[2].strip()))
    if gold_value is None:
        return Verdict(kind="error", detail=f"the ground truth is no number: {shortened(gold)}", rule=GOLD)
    if len(answer) > MAX_ANSWER_CHARS:
        return Verdict(kind="unparsable", detail=f"a number of {len(answer)} digits")
    value = _value(answer)
    if value is None:
        return Verdict(kind="unparsable", detail=shortened(answer))
    return Verdict(kind="right" if value == gold_value else "wrong", detail=shortened(answer), rule="numbers")


def _value(number: str) -> Fraction | None:
    if not re.fullmatch(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?(?:/[0-9]+)?", number):
        return None
    over, _, under = number.partition("/")
    if under and int(under) == 0:
        return None
    return Fraction(over) / int(under or 1)
