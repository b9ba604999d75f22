"""Losses of NFT's neighbours: pure functions, tensors in, per-token losses out, like nft/loss.py, whose names they use.

With R_t = pi / pi_old of a token, s = (prod_t R_t)^(1/T) of an answer of T tokens, A its advantage, r its verdict, w(q)
the prompt's weight, and sg(x) = x without gradient:

    GSPO      L_t = - min( s A, clip(s, 1 - clip_low, 1 + clip_high) A )             arXiv 2507.18071
    CISPO     L_t = - sg( clip(R_t, 1 - clip_low, 1 + clip_high) ) A log pi_t         arXiv 2506.13585
    TOPR      L_t = - w(q) [ pos_weight r - neg_weight (1 - r) sg( min(R, 1) ) ] log pi_t
                                                                                      arXiv 2503.14286
    AsymRE    L_t = - ( reward - (mean of the group + baseline_shift) ) log pi_t      arXiv 2506.20520

REINFORCE with a sign (PSR, NSR, W-REINFORCE: arXiv 2506.01347) is `nft/loss.py`'s clipped objective with the advantage
w(q) [ pos_weight r - neg_weight (1 - r) ], and MaxRL (arXiv 2602.02710) that with an advantage over the mean reward.

Each has the gradient -A dlog pi on-policy, with TOPR's and AsymRE's own weights for A. Nothing here is summed or
averaged. The constants are the papers' as far as they have any; CISPO's upper bound of 5 is ScaleRL's (2510.13786).
Shape suffix: _T answer tokens of any number of sequences, end to end.
"""

import torch
from torch import Tensor

from megatron_nft.nft.loss import MAX_LOG_RATIO, log_ratios, means_by_answer
from megatron_nft.nft.rewards import clamp_correct_rate, prompt_weight


def gspo_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    sequence_ids_T: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """GSPO's losses: an answer's, repeated per token, so that its mean over tokens is the answer's once."""
    means_T = means_by_answer(logprobs_T - old_logprobs_T, sequence_ids_T)
    ratios_T = torch.exp(means_T.clamp(max=MAX_LOG_RATIO))
    clipped_T = ratios_T.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratios_T * advantages_T, clipped_T * advantages_T)


def cispo_loss(
    logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, *, clip_low: float = 1.0, clip_high: float = 4.0
) -> Tensor:
    """CISPO's losses: the clipped ratio is a weight, so that no token is left without a gradient."""
    ratios_T = torch.exp(log_ratios(logprobs_T, old_logprobs_T)).clamp(1 - clip_low, 1 + clip_high)
    return -ratios_T.detach() * advantages_T * logprobs_T


def topr_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    verdicts_T: Tensor,
    correct_rates_T: Tensor,
    *,
    neg_weight: float = 1.0,
    pos_weight: float = 1.0,
    normalize: int = 0,
    sequence_ids_T: Tensor | None = None,
) -> Tensor:
    """TOPR's losses: right answers as they are, wrong ones tapered off as they become unlikelier.

    Args:
        sequence_ids_T: given, R is the product of an answer's ratios, as in the paper. None: a token's.
    """
    tapers_T = torch.exp(log_ratios(logprobs_T, old_logprobs_T, sequence_ids_T)).clamp(max=1).detach()
    weights_T = torch.where(verdicts_T > 0.5, pos_weight, -neg_weight * tapers_T)
    return -prompt_weight(clamp_correct_rate(correct_rates_T), normalize) * weights_T * logprobs_T


def weighted_loss(logprobs_T: Tensor, weights_T: Tensor) -> Tensor:
    """REINFORCE without a ratio: -A log pi_t. With weights of 1, the loss of supervised fine-tuning."""
    return -weights_T * logprobs_T
