r"""Ground truths, looked at before a run: those that no answer in another notation could be right for.

Ground truths with their modes come in, a line for each that its mode can't take goes out, with the mode that would.
Called by judge.py in the workers, as reading may take for ever; shown by agreement.py and when a run starts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_nft.verdict import formula
from megatron_nft.verdict.alternatives import alternatives
from megatron_nft.verdict.boxes import all_boxed
from megatron_nft.verdict.graders import MODES
from megatron_nft.verdict.math_answer import leaves, why_unreadable
from megatron_nft.verdict.notation import plain
from megatron_nft.verdict.plain_answer import judge_number
from megatron_nft.verdict.quantity import read_quantity
from megatron_nft.verdict.structure import Word, read

_LETTERS = re.compile(r"\\[A-Za-z]+|_\{[^{}]*\}|([A-Za-z])")


@dataclass(frozen=True, kw_only=True)
class GoldProblem:
    """A ground truth that its mode can't take."""

    row: str  # where it stands
    gold: str
    mode: str
    reason: str
    taken_by: str  # the mode that would take it; "" if none does

    def __str__(self) -> str:
        remedy = (
            f'; verdict.modes "{self.taken_by}" would take it' if self.taken_by else "; mend the row, or leave it out"
        )
        return f"{self.row}: ground truth {self.gold[:80]!r} ({self.mode}): {self.reason}{remedy}"


def check_golds(rows: Sequence[tuple[str, str, str]]) -> list[GoldProblem]:
    """Runs in a worker. The problems of (row, ground truth, mode); graders of one's own are not asked."""
    problems = []
    for row, gold, mode in rows:
        if mode in MODES and (reason := why_not_taken(gold, mode)) is not None:
            others = (other for other in ("last_number", "boxed", "strict_boxed") if other != mode)
            taken_by = next((other for other in others if why_not_taken(gold, other) is None), "")
            problems.append(GoldProblem(row=row, gold=gold, mode=mode, reason=reason, taken_by=taken_by))
    return problems


def why_not_taken(gold: str, mode: str) -> str | None:
    """Why a mode can't take the ground truth, of several right answers one; None if it can."""
    if len(answers := alternatives(gold)) > 1:
        return next((reason for one in answers if (reason := why_not_taken(one, mode)) is not None), None)
    if not gold.strip():
        return "it is empty"
    if mode == "last_number":
        return None if judge_number("0", gold).kind != "error" else "it is no number"
    if mode in ("boxed", "answer_line"):
        if (unread := why_unreadable(gold)) is not None:
            return f"{unread[:60]!r} is no formula"
        return _what_is_lost(gold)
    return None


def _what_is_lost(gold: str) -> str | None:
    """A letter of the text that its reading has not."""
    if all_boxed(gold):
        return None
    node = read(gold)
    if isinstance(node, Word):
        return None
    for leaf in leaves(node):
        value = plain(read_quantity(leaf.text).value)
        if not value or r"\begin" in value:
            continue
        parsed = formula.parse(value)
        said = str(parsed)
        letters = {match[1] for match in _LETTERS.finditer(value) if match[1]} - set("eidEI")
        if lost := {letter for letter in letters if letter not in said}:
            return f"its reading {said[:60]!r} has no {', '.join(sorted(lost))}"
    return None
