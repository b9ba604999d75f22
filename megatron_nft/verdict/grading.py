r"""What a worker does with answers: finds the one in each text, and judges it where that takes no algebra.

Texts come in, Verdicts or extracted answers go out; the latter come back one by one, each under its own deadline, as
algebra may hang. Called by judge.py through the pool, so that no text is read in the driver.
"""

from collections.abc import Sequence
from typing import NamedTuple

from megatron_nft.types import Prompt, Verdict
from megatron_nft.verdict.alternatives import alternatives, judge_any
from megatron_nft.verdict.boxes import THINK_START, UNFINISHED, behind_thought
from megatron_nft.verdict.graders import grader_named
from megatron_nft.verdict.math_answer import GOLD, judge_quickly

NO_GOLDS = {"", "nan"}
"""A missing value that was made text: no answer is right for it, a box with "nan" neither."""


class Text(NamedTuple):
    """An answer as it was sampled, with what its grading needs."""

    text: str
    gold: str
    mode: str
    opens_thought: bool = False  # the prompt ends with <think>


def begin(texts: Sequence[Text], thoughts_end: bool) -> list[Verdict | str]:
    """Runs in a worker, on a few texts at once: linear in their length.

    Args:
        thoughts_end: what stands behind </think> is the answer (verdict.thoughts).
    """
    return [_begin(text, thoughts_end) for text in texts]


def opens_thought(prompt: Prompt) -> bool:
    """Some chat templates let the answer begin within its thought."""
    return prompt.text.rstrip().endswith(THINK_START)


def final_answer(text: str, mode: str, thoughts_end: bool, opens_thought: bool = False) -> str | None:
    """The answer in a text; None where there is none."""
    answer = behind_thought(text, opens_thought) if thoughts_end else text
    return None if answer is None else grader_named(mode).extract(answer)


def _begin(item: Text, thoughts_end: bool) -> Verdict | str:
    grader = grader_named(item.mode)
    if item.gold.strip() in NO_GOLDS:
        return Verdict(kind="error", detail="there is no ground truth", rule=GOLD)
    text = behind_thought(item.text, item.opens_thought) if thoughts_end else item.text
    if text is None:
        return Verdict(kind="unparsable", detail=UNFINISHED)
    extracted = grader.extract(text)
    if extracted is None:
        return Verdict(kind="unparsable", detail=grader.missing)
    if grader.is_quick:
        return judge_any(grader.judge, extracted, item.gold)
    if grader.is_math:
        verdicts = [judge_quickly(extracted, gold) for gold in alternatives(item.gold)]
        if (right := next((v for v in verdicts if v is not None and v.is_right), None)) is not None:
            return right
        return extracted if None in verdicts else verdicts[0]
    return extracted
