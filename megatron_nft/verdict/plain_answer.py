r"""Answers compared as texts or as plain numbers, without algebra: DAPO's strict box, its answer line, the last number.

Pure functions in linear time, fast enough for the driver; verdict/graders.py makes modes of them.
"""

import re
from decimal import Decimal

from megatron_nft.types import Verdict
from megatron_nft.verdict.math_answer import MAX_ANSWER_CHARS, last_boxed, shortened

STRICT_TAIL_CHARS = 100
"""Of a text that the strict mode looks at, as in DAPO's grader (verl's math_dapo.py)."""

BOX = r"\boxed{"
# ASCII digits: \d would take any script's.
_NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+")
_ANSWER_LINE = re.compile(r"answer[ \t*]*:[ \t*]*([^\n]*)", re.IGNORECASE)


def strict_boxed(text: str) -> str | None:
    r"""Contents of the last \boxed{ within the last 100 characters, spaces included; None if it isn't closed.

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
    """Right if the two are the same characters."""
    return Verdict(kind="right" if answer == gold else "wrong", detail=shortened(answer))


def answer_line(text: str) -> str | None:
    """What the last line "Answer: ..." says, without dollars and a closing dot; without such a line, the last box."""
    lines = _ANSWER_LINE.findall(text)
    if not lines or not lines[-1].strip():
        return last_boxed(text)
    boxed = last_boxed(lines[-1])
    return lines[-1].strip().rstrip(".*").strip("$ \t") if boxed is None else boxed


def last_number(text: str) -> str | None:
    """The last number after the last "####" (GSM8K's mark), or else of the text, without thousands separators."""
    _, _, marked = text.rpartition("####")
    numbers = _NUMBER.findall(marked) or _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def judge_number(answer: str, gold: str) -> Verdict:
    """Compares exactly: 18 and 18.0 are the same, 18 and 18.001 are not."""
    gold_number = gold.rpartition("####")[2].strip().removeprefix("$").replace(",", "")
    if not _NUMBER.fullmatch(gold_number):
        return Verdict(kind="error", detail=f"the ground truth is no number: {shortened(gold)}")
    if len(answer) > MAX_ANSWER_CHARS:
        return Verdict(kind="unparsable", detail=f"a number of {len(answer)} digits")
    return Verdict(kind="right" if Decimal(answer) == Decimal(gold_number) else "wrong", detail=shortened(answer))
