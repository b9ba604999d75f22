"""What the verdicts of a group weigh: correct rates and prompt weights, rewards and advantages.

Judged RolloutGroups, or numbers of them, come in; numbers go out. Called by the methods (nft/methods) and nft/loss.py.
Shape suffix: _G the answers of a group.
"""

from typing import TypeVar

import numpy as np
from torch import Tensor

from megatron_nft.types import RolloutGroup

MIN_CORRECT_RATE, MAX_CORRECT_RATE = 0.02, 0.98
"""Published clamp of p, which keeps w(q) and 1 / (1 - p) finite. Mixed groups of up to 50 answers never reach it."""

Rate = TypeVar("Rate", float, Tensor)


def clamp_correct_rate(correct_rate: Rate) -> Rate:
    """p within [0.02, 0.98]."""
    if isinstance(correct_rate, Tensor):
        return correct_rate.clamp(MIN_CORRECT_RATE, MAX_CORRECT_RATE)
    return min(max(correct_rate, MIN_CORRECT_RATE), MAX_CORRECT_RATE)


def prompt_weight(correct_rate: Rate, normalize: int) -> Rate:
    """w(q) for a clamped correct rate p: 1, 1 - p (on-policy: Dr. GRPO), sqrt((1 - p) / p) (on-policy: GRPO), or
    (1 - p) / p (on-policy: MaxRL).

    Raises:
        ValueError: normalize is none of 0, 1, 2, 3.
    """
    if normalize == 0:
        return correct_rate * 0 + 1
    if normalize == 1:
        return 1 - correct_rate
    if normalize == 2:
        return ((1 - correct_rate) / correct_rate) ** 0.5
    if normalize == 3:
        return (1 - correct_rate) / correct_rate
    raise ValueError(f"normalize = {normalize}: choose 0 (w = 1), 1 (1 - p), 2 (sqrt((1 - p) / p)) or 3 ((1 - p) / p)")


def rewards(group: RolloutGroup, *, max_answer_tokens: int, penalty: float = 0.0, share: float = 0.2) -> np.ndarray:
    """Float64 [G]: each answer's score (1 right, 0 wrong), less DAPO's soft overlong punishment.

    DAPO (arXiv 2503.14476, equation 13) has rewards of 1 and -1, and a punishment that grows from 0 to 1 over the last
    `share` of the allowed length; on the scale of 1 and 0 here it is half as large. A share of 0 punishes nothing.
    """
    if share == 0:
        return np.array(group.scores, np.float64)
    lengths_G = np.array([len(rollout.token_ids_A) for rollout in group.rollouts])
    last_part = share * max_answer_tokens
    punishment_G = np.clip((lengths_G - (max_answer_tokens - last_part)) / last_part, 0, 1)
    return np.array(group.scores, np.float64) - 0.5 * penalty * punishment_G


def advantages(rewards_G: np.ndarray, normalize: int) -> np.ndarray:
    """Float64 [G]: rewards less their mean (1: Dr. GRPO), and that over their standard deviation (2: GRPO, DAPO), or
    over their mean (3: MaxRL, arXiv 2602.02710: the gradient of log p in place of p's).

    The deviation is the population's, as in NFT's comparison: sqrt(p (1 - p)) for verdicts. Rewards that are all equal
    have no advantage over each other. A mean below MIN_CORRECT_RATE divides as that, as everywhere.

    Raises:
        ValueError: normalize is none of 1, 2, 3.
    """
    if normalize not in (1, 2, 3):
        raise ValueError(
            f"normalize = {normalize}: choose 1 (reward - mean), 2 (that over the deviation) or 3 (over the mean)"
        )
    centred_G = rewards_G - rewards_G.mean()
    if normalize == 3:
        return centred_G / max(rewards_G.mean(), MIN_CORRECT_RATE)
    deviation = centred_G.std()
    if normalize == 1 or deviation == 0:
        return centred_G
    return centred_G / deviation
