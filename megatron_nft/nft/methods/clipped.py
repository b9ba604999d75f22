"""GRPO, Dr. GRPO, DAPO and MaxRL: the clipped policy-gradient objective (nft/loss.py), which learns from advantages.

What others that learn from advantages share with them is public here.
"""

import numpy as np
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.loss import clipped_loss, clipped_tokens
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.nft.rewards import advantages, rewards
from megatron_nft.types import RolloutGroup

CLIPPED_METRICS = {
    "nft/clipped_fraction": ("clipped", "tokens"),
    "nft/clipped_right_fraction": ("clipped_right", "right_tokens"),
    "nft/clipped_wrong_fraction": ("clipped_wrong", "wrong_tokens"),
}


def advantages_of(group: RolloutGroup, algorithm: AlgorithmConfig, max_answer_tokens: int) -> dict[str, np.ndarray]:
    """Each answer's advantage over its group."""
    rewards_G = rewards(
        group,
        max_answer_tokens=max_answer_tokens,
        penalty=algorithm.overlong_penalty,
        share=algorithm.overlong_share,
    )
    return {"advantage": advantages(rewards_G, algorithm.normalize)}


def by_verdict(clipped_A: Tensor, verdicts_A: Tensor) -> dict[str, Tensor]:
    """Sums of CLIPPED_METRICS, from which tokens' ratios earn nothing more."""
    right_A = verdicts_A > 0.5
    sums = {"clipped": clipped_A, "clipped_right": clipped_A & right_A, "clipped_wrong": clipped_A & ~right_A}
    return {name: which_A.sum().float() for name, which_A in sums.items()}


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return clipped_loss(logprobs_A, columns["old_logprobs"], columns["advantage"], **_clip(algorithm))


def _sums(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> dict[str, Tensor]:
    clipped_A = clipped_tokens(logprobs_A, columns["old_logprobs"], columns["advantage"], **_clip(algorithm))
    return by_verdict(clipped_A, columns["verdict"])


def _clip(algorithm: AlgorithmConfig) -> dict[str, float]:
    return {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high, "dual_clip": algorithm.dual_clip}


METHOD = Method(
    takes=("old_logprobs", "advantage", "verdict"),
    losses=_losses,
    answers=advantages_of,
    sums=_sums,
    metrics=CLIPPED_METRICS,
)
