r"""Signs of Unicode as LaTeX: models write 90°, √2, x², ½ and − as well as the commands.

A text comes in, the same text with commands in place of signs goes out. Pure data and one function; called by
notation.py.
"""

import re
import unicodedata

SIGNS = {
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "﹣": "-",
    "∗": "*",
    "⋅": r"\cdot ",
    "·": r"\cdot ",
    "•": r"\cdot ",
    "×": r"\times ",
    "÷": r"\div ",
    "∕": "/",
    "⁄": "/",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≅": r"\approx ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "∣": "|",
    "∧": ",",
    "∨": r"\lor ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "∖": r"\setminus ",
    "％": r"\%",
    "€": r"\$",
    "£": r"\$",
    "¥": r"\$",
    "₹": r"\$",
    "￥": r"\$",
    "′": "'",
    "’": "'",
    "‘": "'",
    "，": ",",
    "、": ",",
    "。": ".",
    "；": ";",
    "：": ":",
    "→": r"\to ",
    "″": "''",
    "“": '"',
    "”": '"',
    "∆": r"\Delta ",
    "µ": r"\mu ",
    "…": r"\ldots ",
    "⋯": r"\ldots ",
    "∘": r"\circ ",
    "√": r"\sqrt",
    "∛": r"\sqrt[3]",
    "∜": r"\sqrt[4]",
    "ϕ": r"\phi ",
    "ε": r"\epsilon ",
    "ϵ": r"\epsilon ",
    "\u2061": "",
    "\u2062": "",
    "\u200b": "",
    "\u200c": "",
    "\u200d": "",
    "\u2060": "",
    "\ufeff": "",
    "\u00ad": "",
}
"""Money signs are all a dollar: which currency is meant, the question says."""

RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₘᵢⱼ", "0123456789+-=()nkmij", strict=True))

_RAISED = re.compile(f"[{''.join(RAISED)}]+")
_LOWERED = re.compile(f"[{''.join(LOWERED)}]+")
_COMPATIBLE = re.compile("[\u2000-\u200a\u202f\u205f\u3000\u00a0\uff01-\uffee\U0001d400-\U0001d7ff]")
"""Spaces of other widths, full-width forms and letters in mathematical fonts: to NFKC they are ASCII."""


def without_signs(text: str) -> str:
    """The text with LaTeX in the place of Unicode's signs; what has no such reading stays."""
    if text.isascii():
        return text
    text = "".join(SIGNS.get(character, character) for character in text)
    text = _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = _RAISED.sub(lambda match: "^{" + "".join(RAISED[c] for c in match[0]) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + "".join(LOWERED[c] for c in match[0]) + "}", text)
    return "".join(_fraction(c) or _greek(c) or c for c in text)


def _fraction(character: str) -> str:
    r"""½ as \frac{1}{2}."""
    if unicodedata.category(character) != "No":
        return ""
    over, slash, under = unicodedata.normalize("NFKC", character).partition("\u2044")
    return rf"\frac{{{over}}}{{{under}}}" if slash else ""


def _greek(character: str) -> str:
    r"""π as \pi; capitals that look like Latin ones have no command."""
    name = unicodedata.name(character, "").split()
    if len(name) != 4 or name[0] != "GREEK" or name[2] != "LETTER":
        return ""
    letter = {"LAMDA": "lambda", "FINAL": "sigma"}.get(name[3], name[3].lower())
    return rf"\{letter} " if name[1] == "SMALL" else rf"\{letter.capitalize()} "
