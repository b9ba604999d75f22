"""From judged groups to training sequences: which groups are kept, and what a group's correct rate weighs.

Judged RolloutGroups come in, TrainSequences go out. Called by train.py; the weights by nft/loss.py.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from megatron_nft.types import RolloutGroup, TrainSequence

MIN_CORRECT_RATE, MAX_CORRECT_RATE = 0.02, 0.98
"""Published clamp of p, which keeps w(q) and 1 / (1 - p) finite. Mixed groups of up to 50 answers never reach it."""

Rate = TypeVar("Rate", float, Tensor)


def keep_mixed(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """The groups that have right and wrong answers; the others carry no signal."""
    return [group for group in groups if group.is_mixed]


def clamp_correct_rate(correct_rate: Rate) -> Rate:
    """p within [0.02, 0.98]."""
    if isinstance(correct_rate, Tensor):
        return correct_rate.clamp(MIN_CORRECT_RATE, MAX_CORRECT_RATE)
    return min(max(correct_rate, MIN_CORRECT_RATE), MAX_CORRECT_RATE)


def prompt_weight(correct_rate: Rate, normalize: int) -> Rate:
    """w(q) for a clamped correct rate p: 1, 1 - p (on-policy: Dr. GRPO), or sqrt((1 - p) / p) (on-policy: GRPO).

    Raises:
        ValueError: normalize is none of 0, 1, 2.
    """
    if normalize == 0:
        return correct_rate * 0 + 1
    if normalize == 1:
        return 1 - correct_rate
    if normalize == 2:
        return ((1 - correct_rate) / correct_rate) ** 0.5
    raise ValueError(f"normalize = {normalize}: choose 0 (w = 1), 1 (w = 1 - p) or 2 (w = sqrt((1 - p) / p))")


def to_sequences(group: RolloutGroup) -> list[TrainSequence]:
    """One TrainSequence per rollout of a judged group."""
    prompt_P = group.prompt.token_ids_P
    return [
        TrainSequence(
            token_ids_T=np.concatenate([prompt_P, rollout.token_ids_A]).astype(np.int32),
            num_prompt_tokens=len(prompt_P),
            verdict=float(right),
            correct_rate=group.correct_rate,
            engine_logprobs_A=rollout.engine_logprobs_A,
        )
        for rollout, right in zip(group.rollouts, group.rights, strict=True)
    ]
