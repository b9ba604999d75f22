"""PSR, NSR, W-REINFORCE: REINFORCE with a sign, right answers up and wrong ones down, each with a weight of its own.

Arxiv 2506.01347 ("The Surprising Effectiveness of Negative Reinforcement"): rewards of 1 and -1, no baseline, its
trainer's clipped ratio (nft/loss.py). The weights stand in the loss, not in the answers' rows, since they may change
from step to step.
"""

import torch
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.loss import clipped_loss, clipped_tokens
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.nft.methods.clipped import CLIPPED_METRICS, by_verdict
from megatron_nft.nft.rewards import clamp_correct_rate, prompt_weight


def signed_weights(verdicts_T: Tensor, correct_rates_T: Tensor, algorithm: AlgorithmConfig) -> Tensor:
    """w(q) [pos_weight r - neg_weight (1 - r)]."""
    signs_T = torch.where(verdicts_T > 0.5, algorithm.pos_weight, -algorithm.neg_weight)
    return prompt_weight(clamp_correct_rate(correct_rates_T), algorithm.normalize) * signs_T


def _arguments(columns: Columns, algorithm: AlgorithmConfig) -> dict:
    return {
        "old_logprobs_T": columns["old_logprobs"],
        "advantages_T": signed_weights(columns["verdict"], columns["correct_rate"], algorithm),
        "clip_low": algorithm.clip_low,
        "clip_high": algorithm.clip_high,
    }


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return clipped_loss(logprobs_A, **_arguments(columns, algorithm))


def _sums(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> dict[str, Tensor]:
    return by_verdict(clipped_tokens(logprobs_A, **_arguments(columns, algorithm)), columns["verdict"])


METHOD = Method(takes=("old_logprobs", "verdict", "correct_rate"), losses=_losses, sums=_sums, metrics=CLIPPED_METRICS)
