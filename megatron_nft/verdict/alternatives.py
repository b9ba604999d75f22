"""A ground truth that is a list of right answers: any of them will do.

data/ground_truth.py writes such a list as JSON, '["34", "68/2"]'; no text of mathematics looks so. Called by judge.py,
grading.py and golds.py. Several answers that must all be given are one ground truth, not a list: "3 or 5".
"""

import json
from collections.abc import Callable
from typing import Any

from megatron_nft.types import Verdict
from megatron_nft.verdict.math_answer import GOLD


def alternatives(gold: str) -> list[str]:
    """The right answers; most ground truths are one."""
    if not gold.startswith('["'):
        return [gold]
    try:
        answers = json.loads(gold)
    except ValueError:
        return [gold]
    return answers if isinstance(answers, list) and all(isinstance(one, str) for one in answers) else [gold]


def judge_any(judge: Callable[..., Verdict], answer: str, gold: str, *more: Any) -> Verdict:
    """Right if the answer is one of them; else what is said beside the first that could be read."""
    verdicts = []
    for one in alternatives(gold):
        verdict = judge(answer, one, *more)
        if verdict.kind == "right":
            return verdict
        verdicts.append(verdict)
    return next((verdict for verdict in verdicts if verdict.rule != GOLD), verdicts[0])
