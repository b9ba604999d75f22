r"""DAPO's own grader of its data set: the last line "Answer: ...", as text (verl's math_dapo.py at 57565332).

A text and a ground truth come in, a Verdict goes out. Two things are decided otherwise than there, since a policy would
find them: "41 = 42" is no answer (there, only what stands behind the last "=" counts), and of several formulas in the
line the last counts, not the first. Newer verl also takes a box where no such line is; here that is another mode. The
mode "dapo_line" of verdict/graders.py.
"""

import re

from megatron_nft.types import Verdict
from megatron_nft.verdict.math_answer import shortened
from megatron_nft.verdict.plain_answer import _END_TOKEN

TAIL_CHARS = 300
_LINE = re.compile(r"(?i)Answer\s*[:：]\s*([^\n]+)")
_REMARK = re.compile(r"(?<=[\d}$)`])\s+\([^()$]*[A-Za-z]{2}[^()$]*\)\.?$")

_SUBSTITUTIONS = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    (r"\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_REMOVED = (
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "hours",
    "km",
    "units",
    "\\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    r"\mathrm{th}",
    r"^\circ",
    r"^{\circ}",
    r"\;",
    r",\!",
    "{,}",
    '"',
    "\\dots",
)


def dapo_line(text: str) -> str | None:
    """What the last line "Answer: ..." of the last 300 characters says; the line below it, where it is empty."""
    lines = _LINE.findall(_END_TOKEN.sub("", text[-TAIL_CHARS - 100 :])[-TAIL_CHARS:])
    return lines[-1].strip() if lines else None


def judge_dapo_line(answer: str, gold: str) -> Verdict:
    """Right if the two are the same text, once normalised."""
    answer = _REMARK.sub("", answer.strip()).strip("`*")
    formulas = re.findall(r"\$[^$]+\$", answer)
    found, wanted = normalised(formulas[-1] if len(formulas) > 1 else answer), normalised(gold)
    sides = [normalised(side) for side in answer.split("=")]
    is_false = any(re.search(r"\d", side) and side != sides[-1] for side in sides[:-1])
    is_right = bool(wanted) and found == wanted and not is_false
    return Verdict(kind="right" if is_right else "wrong", detail=shortened(found))


def normalised(answer: str) -> str:
    """As verl's normalize_final_answer."""
    answer = answer.split("=")[-1]
    for before, after in _SUBSTITUTIONS:
        answer = answer.replace(before, after)
    for expression in _REMOVED:
        answer = answer.replace(expression, "")
    answer = re.sub(r"(.*?)(\$)(.*?)(\$)(.*)", "$\\3$", answer)
    answer = re.sub(r"(\\text\{)(.*?)(\})", "\\2", answer)
    answer = re.sub(r"(\\textbf\{)(.*?)(\})", "\\2", answer)
    answer = re.sub(r"(\\overline\{)(.*?)(\})", "\\2", answer)
    answer = re.sub(r"(\\boxed\{)(.*)(\})", "\\2", answer)
    answer = re.sub(r"(frac)([^{])(.)", "frac{\\2}{\\3}", answer)
    answer = re.sub(r"(sqrt)([^{])", "sqrt{\\2}", answer)
    answer = answer.replace("$", "").strip().removesuffix(".")
    return answer.replace(",", "") if answer.replace(",", "").isdigit() else answer
