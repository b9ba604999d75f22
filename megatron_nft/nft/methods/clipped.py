"""GRPO, Dr. GRPO and DAPO: the clipped policy-gradient objective (nft/loss.py), which learns from advantages."""

import numpy as np
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.loss import clipped_loss, num_clipped
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.nft.rewards import advantages, rewards
from megatron_nft.types import RolloutGroup


def _answers(group: RolloutGroup, algorithm: AlgorithmConfig, max_answer_tokens: int) -> dict[str, np.ndarray]:
    rewards_G = rewards(
        group,
        max_answer_tokens=max_answer_tokens,
        penalty=algorithm.overlong_penalty,
        share=algorithm.overlong_share,
    )
    return {"advantage": advantages(rewards_G, algorithm.normalize)}


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return clipped_loss(logprobs_A, columns["old_logprobs"], columns["advantage"], **_clip(algorithm))


def _sums(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> dict[str, Tensor]:
    clipped = num_clipped(logprobs_A, columns["old_logprobs"], columns["advantage"], **_clip(algorithm))
    return {"clipped": clipped}


def _clip(algorithm: AlgorithmConfig) -> dict[str, float]:
    return {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}


METHOD = Method(
    takes=("old_logprobs", "advantage"),
    losses=_losses,
    answers=_answers,
    sums=_sums,
    metrics={"nft/clipped_fraction": ("clipped", "tokens")},
)
