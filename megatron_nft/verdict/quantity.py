r"""A value and what stands around it: unit, percent, money, degrees, the base of a number.

An element's formula in the one notation (notation.py) comes in, a Quantity goes out; `value_of` says which value an
answer's quantity has by a ground truth's: 50 cm for 0.5 m is 0.5, for 50 kg it is none. Called by same.py.
"""

import re
from dataclasses import dataclass

from megatron_nft.verdict.units import Unit, read_unit

_BARE_UNIT = re.compile(
    r"(?<=[\d})])\s*((?:(?:square|sq|cubic|cu)\.?\s+)?[A-Za-z]{2,}(?:\s*(?:/|\s+per\s+)\s*[A-Za-z]+)?)\.?(\s*\^\{-?\d\})?$"
)
_TEXT_UNIT = re.compile(
    r"(?:\\text\{([^{}]*)\}|(?<=\d)\s*\{([A-Za-z ]{2,})\})(\s*\^\{-?\d\})?"
    r"((?:\s*(?:/|\\cdot)?\s*\\text\{[^{}]*\}(?:\s*\^\{-?\d\})?)*)\s*\.?$"
)
_FOREIGN_UNIT = re.compile(r"(?<=\d)\s*([^\W\d_a-zA-Z]+)$")
_DEGREES = re.compile(r"\^\\circ\s*(?:\\text\{\s*)?([CF]?)\s*\}?$")
_BASE = re.compile(
    r"^\(?\s*(-?[0-9A-Z]+(?:\.[0-9A-Z]+)?)\s*\)?\s*_\{\(?(?:\\text\{)?(?:base\s*)?([0-9]{1,2}|[a-z]+)\)?\}?\}?$"
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "eleven": 11, "twelve": 12, "sixteen": 16}  # fmt: skip
_PERCENT = re.compile(r"(?<=[\d})])\s*(?:\\?%|per ?cent(?:age)?|pct)$")
SHORT_UNITS = ("cm", "km", "kg", "ft", "lb", "mL", "Hz", "hr")
"""Units of two letters that need no space before them; 2mn and 3pa are products."""
_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_NO_UNITS = re.compile(
    r"^(?:or|and|not|maybe|if|for|where|with|else|mod|no|is)\b|\b(?:or|maybe|not|if)\b", re.IGNORECASE
)
_FILLERS = {"the", "of", "a", "an", "in", "total", "more", "possible", "different", "approximately", "about"}


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A value's formula, and what was written around it."""

    value: str
    unit: str = ""  # as written
    is_percent: bool = False
    is_money: bool = False
    base: int | None = None

    @property
    def measure(self) -> Unit | None:
        """The unit, if it is one of units.py."""
        return (
            read_unit("dollars" if self.is_money and not self.unit else self.unit)
            if self.unit or self.is_money
            else None
        )


def read_quantity(text: str) -> Quantity:
    """Takes the formula apart. Without anything around it, it is the value."""
    text = text.strip()
    if match := _BASE.match(text):
        base = int(match[2]) if match[2].isdigit() else _BASES.get(match[2])
        if base is not None and 2 <= base <= 36:
            return Quantity(value=match[1], base=base)
    is_money = text.startswith((r"\$", r"-\$"))
    if is_money:
        text = text.replace(r"\$", "", 1).strip()
    elif text.endswith(r"\$"):
        is_money, text = True, text[:-2].strip()
    if match := _PERCENT.search(text):
        return Quantity(value=text[: match.start()].strip(), is_percent=True)
    if (match := _DEGREES.search(text)) and not _FUNCTION.search(text):
        unit = {"C": "celsius", "F": "fahrenheit"}.get(match[1], "degrees")
        return Quantity(value=text[: match.start()].strip(), unit=unit) if match.start() else Quantity(value=text)
    for pattern in (_TEXT_UNIT, _BARE_UNIT, _FOREIGN_UNIT):
        match = pattern.search(text)
        if match is None or not match.start() or _NO_UNITS.search(match[0].replace(r"\text{", "").strip()):
            continue
        unit = re.sub(r"\\text|\\cdot|[{}]", " ", match[0]).strip()
        if pattern is _BARE_UNIT and not _is_bare_unit(text, match):
            continue
        value = re.sub(r"\\times$|\\cdot$", "", text[: match.start()].strip()).strip()
        if value and re.search(r"[\d)}A-Za-z]$", value):
            if re.fullmatch(r"percent(age)?|pct", unit.lower()):
                return Quantity(value=value, is_percent=True)
            return Quantity(value=value, unit=unit, is_money=is_money)
    return Quantity(value=text, is_money=is_money)


def _is_bare_unit(text: str, match: re.Match[str]) -> bool:
    """Letters behind a number are a unit if the table has it, or as a word that a space sets apart: 3m is 3 m's."""
    if not re.search(r"[\d)}]$", text[: match.start()].strip()) or "\\" in match[1]:
        return False
    if not text[match.start()].isspace() and len(match[1]) < 3:
        return match[1] in SHORT_UNITS
    return read_unit(match[1]) is not None or (
        text[match.start()].isspace() and match[1].isalpha() and len(match[1]) >= 4
    )


def words(text: str) -> set[str]:
    """What a unit of no table says: its words, one of many as one of one."""
    return {re.sub(r"(?<=[^s])s$", "", word) for word in re.findall(r"[^\W\d_]+", text.lower())} - _FILLERS
