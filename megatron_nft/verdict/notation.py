r"""One notation for what people and models write in many: LaTeX of few commands, as verdict/structure.py reads it.

A formula comes in, the same formula goes out: one function a rule, in the order of RULES. Nothing is decided here, and
nothing that tells two answers apart is taken away; units, percents and bases stay (quantity.py).
"""

import re
from collections.abc import Callable

from megatron_nft.verdict.signs import without_signs

GROUP = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
"""A group in braces of up to three levels, its contents captured."""

_FONTS = re.compile(
    rf"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|mathtt|mathcal|emph|underline|ensuremath|boxed|fbox)\s*{GROUP}"
)
_COLOURS = re.compile(rf"\\textcolor\s*\{{[^{{}}]*\}}\s*{GROUP}")
_SWITCHES = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|left|right|mleft|mright|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|"
    r"Biggl?|Biggr|bf|rm|it|bfseries|normalfont|middle|strut|nonumber|phantom(?:\s*\{[^{}]*\})?|color\s*\{[^{}]*\}|"
    r"hspace\*?\s*\{[^{}]*\}|vspace\*?\s*\{[^{}]*\})(?![A-Za-z])\.?"
)
_TEXTS = re.compile(rf"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|mathrm|operatorname\*?|rm|hbox)\s*{GROUP}")
_MATH_LETTERS = ("e", "i", "d", "π", "C", "P")  # upright: numbers, a differential, binomials and permutations
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|gcd|lcm|max|min|det|lim"

_SYNONYMS = {
    r"\leqslant": r"\le",
    r"\leq": r"\le",
    r"\leqq": r"\le",
    r"\geqslant": r"\ge",
    r"\geq": r"\ge",
    r"\geqq": r"\ge",
    r"\neq": r"\ne",
    r"\lt": "<",
    r"\gt": ">",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
    r"\varnothing": r"\emptyset",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\ast": "*",
    r"\colon": ":",
    r"\degree": r"^\circ",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\vert": "|",
    r"\mid": "|",
    r"\imath": "i",
    r"\simeq": r"\approx",
    r"\cong": r"\approx",
    r"\land": ",",
    r"\wedge": ",",
    r"\vee": r"\lor",
    r"\euro": r"\$",
    r"\pounds": r"\$",
    r"\dots": r"\ldots",
    r"\cdots": r"\ldots",
    r"\infin": r"\infty",
    r"\lparen": "(",
    r"\rparen": ")",
    r"\textpercent": r"\%",
    r"\textdollar": r"\$",
    r"\Z": r"\mathbb{Z}",
    r"\Vert": "|",
    r"\varepsilon": r"\epsilon",
    r"\varphi": r"\phi",
}
_COMMAND = re.compile(r"\\[A-Za-z]+")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:(?:,?\\[,!; ]\s*|,\\!\s*|\{,\}|~|(?<=\d) (?=\d)|,)\d{3})+)(?![\d])")
_E_NOTATION = re.compile(
    r"(?<![A-Za-z\\\d.])(\d+\.?\d*|\.\d+)\s?[eE]\s?(?:\{([+-]?\d{1,6})\}|([+-]?\d{1,6}))(?![\d.A-Za-z])"
)
_WORDS = {
    "pi": r"\pi ",
    "infinity": r"\infty ",
    "infty": r"\infty ",
    "inf": r"\infty ",
    "oo": r"\infty ",
    "theta": r"\theta ",
}
_BARE_WORD = re.compile(rf"(?<![\\A-Za-z{{])({'|'.join(_WORDS)})(?![A-Za-z])")
_BARE_FUNCTION = re.compile(
    rf"(?<![\\A-Za-z])({_FUNCTIONS})(?=\s*[\(\^]|\s*\\|\s+[A-Za-z\d](?![A-Za-z])|[\dx](?![A-Za-z]))"
)
_ORDINAL = re.compile(r"(?<=\d)\s*(?:\^\s*)?(?:\{\s*)?\\?(?:text)?\s*\{?\s*(?:st|nd|rd|th)\s*\}?(?:\s*\})?(?![A-Za-z])")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;:! ]|q?quad(?![A-Za-z])|enspace|thinspace)|~|\s+")


def plain(latex: str) -> str:
    """The formula in the one notation."""
    latex = latex.strip()
    if latex.isascii() and latex.isdigit():
        return latex
    for rule in RULES:
        latex = rule(latex)
    return latex


def _wrapping(text: str) -> str:
    r"""$...$, \(...\), **...**, `...` and what ends a sentence are not the formula's."""
    while True:
        before = text
        text = text.strip().strip("`")
        text = (
            re.sub(r"\\[ ,;:!]$|\\q?quad$|~$|(?<!\\)[.,;:]$", "", text).strip()
            if not text.endswith(r"\\")
            else text[:-2]
        )
        text = re.sub(r"\\$", "", text) if re.search(r"(?<!\\)\\$", text) else text
        text = re.sub(r"^(?:\\[ ,;:!]|\\q?quad(?![A-Za-z])|~|:(?!=))", "", text).strip()
        for opening, closing in (("**", "**"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                inside = text[len(opening) : -len(closing)]
                if opening not in inside and not inside.endswith("\\"):
                    text = inside
        if text.count("$") - text.count(r"\$") == 1 and re.search(r"(?<!\\)\$$", text):
            text = text[:-1]
        if text == before:
            return re.sub(r"(?<!\\)\$", " ", text)


def _texts(text: str) -> str:
    r"""All of TeX's texts are \text{...}; an upright e, i or d is the number or the differential."""

    def one(match: re.Match[str]) -> str:
        inside = re.sub(r"\\[ ,;:!]|~", " ", match[1]).replace("$", "").replace(r"\%", "%")
        word = inside.strip()
        if word in _MATH_LETTERS:
            return word
        if word.lower().strip(" ,") in ("and", "or"):
            return r"\lor " if "or" in word.lower() else ","
        if word in ("%", "percent"):
            return r"\%"
        if re.fullmatch(_FUNCTIONS, word) and not (word == "min" and re.search(r"\d\s*$", text[: match.start()])):
            return rf"\{word} "
        if re.fullmatch(r"[-+]?\d[\d.,]*", word):
            return word
        if quantity := re.fullmatch(r"([-+]?\d[\d.,]*)\s+([A-Za-z ]+)", word):
            return rf"{quantity[1]} \text{{{quantity[2]}}}"
        return rf"\text{{{inside}}}" if word else " "

    return _TEXTS.sub(one, re.sub(r"\{\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}", text))


def _commands(text: str) -> str:
    """Fonts, colours and sizes say nothing; of commands that mean the same one is left."""
    for pattern in (_COLOURS, _FONTS, _COLOURS, _FONTS):
        text = pattern.sub(r" \1 ", text)
    text = _SWITCHES.sub(" ", text)
    text = re.sub(r"\\\\(?=(?:le|ge|ne|in|frac|sqrt|left|right|pi|cdot|times|text)(?![A-Za-z]))", r"\\", text)
    return _COMMAND.sub(lambda match: _SYNONYMS.get(match[0], match[0]), text)


def _thousands(text: str) -> str:
    r"""1 000, 1\,000, 1{,}000 and 1,000 are one number, where each group has three digits and the first is no 0."""

    def one(match: re.Match[str]) -> str:
        if match[1].startswith("0"):
            return match[0]
        if " " in match[2] and re.match(r"\s*/\s*\d", text[match.end() :]):
            return match[0]  # 1 121/144 is a mixed number
        separators = {re.sub(r"\s+$", "", s) or " " for s in re.findall(r"[^\d]+", match[2])}
        if separators == {","} and _is_inside_brackets(text, match.start()):
            return match[0]  # (1,234) is a pair
        return match[1] + re.sub(r"\D", "", match[2])

    return _THOUSANDS.sub(one, text)


def _is_inside_brackets(text: str, place: int) -> bool:
    before = re.sub(r"\\frac\{|\\sqrt\{", "", text[:place])
    return sum(before.count(c) for c in "([{") > sum(before.count(c) for c in ")]}")


def _ordinals(text: str) -> str:
    """The 5th is 5, about 5 is 5, B) is B."""
    text = re.sub(r"^(?:\\text\{\s*)?(?:about|approximately|roughly)\s*\}?\s*(?=[\d$-])", "", text, flags=re.IGNORECASE)
    return _ORDINAL.sub("", re.sub(r"^\(?([A-Z])\)$", r"\1", text))


def _repeating(match: re.Match[str]) -> str:
    """0.3\\overline{4} as a fraction."""
    whole, once, again = match[1], match[2], match[3]
    over = int(whole + once + again) - int(whole + once or "0")
    return rf"\frac{{{over}}}{{{(10 ** len(again) - 1) * 10 ** len(once)}}}"


def _numbers(text: str) -> str:
    """1.5e3, .5, 5. and 0,5 as LaTeX writes numbers; a decimal that repeats as its fraction."""
    text = re.sub(r"(?<![\d.])(\d*)\.(\d*)\s*\\overline\s*\{?\s*(\d{1,30})\s*\}?", _repeating, text)
    text = re.sub(r"^(-?)0,(\d{3,})$", r"\g<1>0.\2", text)
    text = _E_NOTATION.sub(lambda m: rf"{m[1]} \times 10^{{{int(m[2] or m[3])}}}", text)
    text = re.sub(r"(?<=\d)\.(?=\s*(?:[-+/*^)},;]|\\|$))", "", text)
    return re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)


def _words(text: str) -> str:
    r"""pi, sqrt(2), sin(x) and infinity without their backslashes; words between formulas."""
    parts = re.split(r"(\\text\{[^{}]*\})", text)
    for place in range(0, len(parts), 2):
        part = re.sub(r",?\s*(?<![A-Za-z\\])(?:and|AND)(?![A-Za-z])", ",", parts[place])
        part = re.sub(r",?\s*(?<![A-Za-z\\])(?:or|OR)(?![A-Za-z])", r"\\lor ", part)
        part = _BARE_WORD.sub(lambda match: _WORDS[match[1]], part)
        part = re.sub(r"(?<![\\A-Za-z])sqrt(?=\s*[\({\d])", r"\\sqrt", part)
        parts[place] = _BARE_FUNCTION.sub(r"\\\1 ", part)
    return re.sub(r",\s*,", ",", re.sub(r",\s*\\lor", r"\\lor", "".join(parts)))


def _operators(text: str) -> str:
    """*, **, <=, >=, != as commands."""
    text = (
        text.replace("**", "^")
        .replace("<=", r"\le ")
        .replace(">=", r"\ge ")
        .replace("!=", r"\ne ")
        .replace("~=", r"\approx ")
    )
    text = re.sub(r"(?<!\\operatorname)\*", r"\\cdot ", text)
    return re.sub(r"\^\s*\{?\s*\\circ\s*\}?", r"^\\circ ", text)


def _spaces(text: str) -> str:
    """One kind of space."""
    text = re.sub(r"(?<=\d)\s+(?=\d+\s*/\s*\d)", r"\\mixed ", text)  # 1 1/4
    return _SPACES.sub(" ", text).strip()


def _arguments(text: str) -> str:
    r"""\frac12, \frac\pi4, \sqrt2, \sqrt(2), x^2, x_1 with their braces."""
    one = r"\s*(\\[A-Za-z]+|[A-Za-z\d])"
    group = r"\s*(\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\})"
    text = re.sub(rf"\\(frac|binom){one}{one}", r"\\\1{\2}{\3}", text)
    text = re.sub(rf"\\(frac|binom){one}{group}", r"\\\1{\2}\3", text)
    text = re.sub(rf"\\(frac|binom){group}{one}", r"\\\1\2{\3}", text)
    text = re.sub(rf"\\(frac|binom){group}\s+(?=\{{)", r"\\\1\2", text)
    text = re.sub(r"\\sqrt(\[[^\[\]]*\])?\s*\(((?:[^()]|\([^()]*\))*)\)", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\sqrt(\[[^\[\]]*\])?\s*(\d+|\\[A-Za-z]+|[A-Za-z])", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\sqrt\[(\d*[13579])\]\{\s*-\s*(\d+)\s*\}", r"(-\\sqrt[\1]{\2})", text)  # its real root
    text = re.sub(r"(?<!\\)_\s*([A-Za-z\d])", r"_{\1}", text)
    text = re.sub(r"(?<!\\)_\s*\{\s*\\text\{\s*([A-Za-z\d,]+)\s*\}\s*\}", r"_{\1}", text)
    text = re.sub(r"(?<!\\)_\s*\{\s*\\?([A-Za-z\d,]+)\s*\}", r"_{\1}", text)
    text = re.sub(r"\^\s*(-?\d+|[A-Za-z]|\\(?!circ|text)[A-Za-z]+)", r"^{\1}", text)
    text = re.sub(r"\^\s*\((-?\d+(?:\s*/\s*\d+)?)\)", r"^{\1}", text)
    text = re.sub(r"([A-Za-z\d]|\([^()]*\))!(\^\{)", r"(\1!)\2", text)
    text = re.sub(r"(\^\{[^{}]*\})\s*(_\{[^{}]*\})", r"\2\1", text)
    return re.sub(r"\\mixed\s*(\d+)\s*/\s*(\d+)", r"\\frac{\1}{\2}", text)


RULES: tuple[Callable[[str], str], ...] = (
    without_signs,
    _wrapping,
    _commands,
    _wrapping,
    _texts,
    _thousands,
    _ordinals,
    _operators,
    _spaces,
    _numbers,
    _words,
    _arguments,
    _wrapping,
)
