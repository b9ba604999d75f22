r"""A ground truth of whatever type -> its text, as a person would write it; None where there is none.

34 beside 0.5 in a column of floats is "34", 1e22 is "10000000000000000000000", a date is 2021-03-05. Several right
answers become one text, a JSON list of texts, which verdict/alternatives.py takes apart. Called by rows.py.
"""

import datetime
import json
import re
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from megatron_nft.data.made_text import value_in

MAX_DIGITS = 400
"""Of a number, written out; a double has at most 309 before the point."""
MISSING_TEXTS = {"nan", "<NA>", "NaT"}
"""What pandas writes for a missing value when a column is made text."""
MARK = "####"
"""Of GSM8K, before the number that a worked solution ends in."""
_GSM8K_LINE = re.compile(r"(?:^|\n)\s*####\s*([-+]?\$?[0-9][0-9,./]*%?)\s*$")
_LIST_OF_TEXTS = re.compile(r"""\s*\[\s*(?:"|'.*\]\s*$)""", re.DOTALL)


class NoGroundTruth(ValueError):
    """A value that no text can stand for. The message says what it is."""


def ground_truth_of(value: Any) -> str | None:
    """The text, or a JSON list of several right answers; None: there is none.

    Raises:
        NoGroundTruth: a table, bytes that are no text, an infinite number.
    """
    if isinstance(value, str) and _LIST_OF_TEXTS.match(value):
        value = _list_in(value)
    if not isinstance(value, list | tuple):
        return _text(value)
    if any(isinstance(one, list | tuple | dict) for one in value):
        raise NoGroundTruth("a list of lists or tables, not of right answers")
    answers = list(dict.fromkeys(text for one in value if (text := _text(one)) is not None))
    if len(answers) < 2:
        return answers[0] if answers else None
    return json.dumps(answers, ensure_ascii=False)


def gsm8k_number(solution: str) -> str | None:
    """The number that a worked solution ends in, behind "####" at a line's start; None without one."""
    match = _GSM8K_LINE.search(solution)
    return match[1] if match else None


def last_box(solution: str) -> str | None:
    r"""Contents of the last \boxed{...} that is in no other; None without one, or if its end is not clear."""
    found, depth, start = None, 0, 0
    for token in re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|(\w*))|\\.|[{}]", solution, re.DOTALL):
        if depth == 0:
            if token[1] is not None:
                found = token[1] if len(token[1]) == 1 else None  # \boxed 5; of \boxed 12, TeX boxes the 1 alone
            elif token[0].endswith("{") and len(token[0]) > 2:
                depth, start = 1, token.end()
        elif token[0] == "}":
            depth -= 1
            found = solution[start : token.start()].strip() if depth == 0 else found
        elif token[0].endswith("{") and token[0] != r"\{":
            depth += 1
    return found if depth == 0 else None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise NoGroundTruth("bytes that are no text") from None
    if isinstance(value, str):
        return None if not value.strip() or value.strip() in MISSING_TEXTS else value
    if value is None or value != value:  # NaN, and pandas' NaT
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return _digits(Decimal(int(value)))
    if isinstance(value, Real | Decimal):
        return _digits(value if isinstance(value, Decimal) else Decimal(repr(float(value))))
    if isinstance(value, datetime.datetime):
        is_day = value.time() == datetime.time() and value.tzinfo is None
        return value.date().isoformat() if is_day else value.isoformat(sep=" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise NoGroundTruth(f"a {type(value).__name__}, not text, a number, a date, true or false, or a list of these")


def _digits(number: Decimal) -> str:
    """Without an exponent, and without zeros that say nothing."""
    if not number.is_finite():
        raise NoGroundTruth(f"{number}, not a number that an answer could be")
    if abs(number.adjusted()) > MAX_DIGITS:
        return str(number)
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _list_in(text: str) -> Any:
    """'["34"]' and "['34']" are lists of right answers; the interval [1, 2] and all that is no list stay texts.

    Raises:
        NoGroundTruth: it may be a list, and of what isn't clear.
    """
    try:
        value = value_in(text)
    except ValueError:
        if "'" in text[:3] or '" "' in text:
            raise NoGroundTruth(f"{text[:60]!r}, a list made text that can't be read; write it as a list") from None
        return text
    return value if isinstance(value, list) else text
