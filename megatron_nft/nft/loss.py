"""The NFT loss and its baselines: pure functions, tensors in, per-token losses out. Called by the methods
(nft/methods), by actor/pipeline.py for what they share, and from notebooks.

Source: Chen et al., "Bridging Supervised Learning and Reinforcement Learning in Math Reasoning", arXiv 2505.18116
(numbers of equations and propositions: v3). The old policy splits into one of right and one of wrong answers (Eq. 7),

    p pi+(a|q) + (1 - p) pi-(a|q) = pi_old(a|q),     so     pi-(a|q) = (pi_old(a|q) - p pi(a|q)) / (1 - p)

is the implicit negative policy of the one being trained, pi for pi+ (section 3.2): maximum likelihood of wrong answers
under it trains pi (Theorem 3.1). By token, for a question q with answers of the old policy, verdict r in {0, 1},
correct rate p of the group, likelihood ratio R_t = pi(a_t | q, a_<t) / pi_old(a_t | q, a_<t), so that pi- / pi_old is
(1 - p R_t) / (1 - p) (Eq. 10):

    NFT   L_t = - w(q) [ pos_weight r log R_t + neg_weight (1 - r) log max_v( (1 - p R_t) / (1 - p), eps ) ]
    GRPO  L_t = - min( R_t A, clip(R_t, 1 - clip_low, 1 + clip_high) A )       and so Dr. GRPO and DAPO

max_v is a straight-through clamp (Algorithm 1): the value is clipped, the gradient passes as if it were not. A is the
answer's advantage (nft/rewards.py); pos_weight is 1 in NFT. On-policy, where R_t = 1 (train.updates_per_step = 1), both
have the gradient -A_t dlog pi (Propositions 4.1, 4.2): NFT with normalize 1 that of Dr. GRPO (A = r - p), with
normalize 2 that of GRPO (A = (r - p) / sqrt(p (1 - p))), with normalize 3 that of MaxRL (A = (r - p) / p); the constant
between them is 1 (neg_weight = 1, a ratio per token, the same reduction, p within [0.02, 0.98]). Nothing here is summed
or averaged: the one place that normalises is actor/pipeline.py. NFT's neighbours: nft/neighbours.py.

Shape suffix: _T answer tokens of any number of sequences, end to end.
"""

import torch
from torch import Tensor

from megatron_nft.nft.rewards import clamp_correct_rate, prompt_weight

MAX_LOG_RATIO = 10.0
"""Cap of log R_t before exp: e^10 is far outside any trust region, and exp stays finite in fp32 (published value)."""


def nft_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    verdicts_T: Tensor,
    correct_rates_T: Tensor,
    *,
    neg_weight: float = 1.0,
    pos_weight: float = 1.0,
    normalize: int = 1,
    clamp_negative: float = 1.0,
    sequence_ids_T: Tensor | None = None,
) -> Tensor:
    """Per-token NFT losses.

    Args:
        logprobs_T: log pi of each answer token under the policy being trained; carries the gradient.
        old_logprobs_T: the same under the policy that the groups came from.
        verdicts_T: 1 for a token of a right answer, 0 for one of a wrong answer.
        correct_rates_T: the group's correct rate p, repeated per token; clamped to [0.02, 0.98].
        neg_weight, pos_weight: weights of wrong and of right answers; neg_weight 0 is rejection fine-tuning.
        normalize: prompt weight w(q), see `rewards.prompt_weight`.
        clamp_negative: eps, the lower clamp of a wrong answer's implicit ratio.
        sequence_ids_T: int64, equal for the tokens of one answer and counted from 0. Given: one likelihood ratio per
            answer, the product of its tokens' ratios, in place of R_t. None: a ratio per token.

    Returns:
        losses_T, not reduced.
    """
    log_ratios_T = log_ratios(logprobs_T, old_logprobs_T, sequence_ids_T)
    p_T = clamp_correct_rate(correct_rates_T)
    positive_T = pos_weight * log_ratios_T
    negative_T = torch.log(straight_through_min(implicit_negative_ratio(log_ratios_T, p_T), clamp_negative))
    return -prompt_weight(p_T, normalize) * torch.where(verdicts_T > 0.5, positive_T, neg_weight * negative_T)


def clipped_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
) -> Tensor:
    """Per-token losses of the clipped policy-gradient objective: GRPO (arXiv 2402.03300, equation 3), Dr. GRPO
    (arXiv 2503.20783), and with clip_high > clip_low DAPO (arXiv 2503.14476, equation 8).

    Args:
        logprobs_T, old_logprobs_T: as in `nft_loss`.
        advantages_T: the answer's advantage, repeated per token.
        clip_low, clip_high: a ratio outside [1 - clip_low, 1 + clip_high] earns nothing more.
        dual_clip: c of the dual clip (Ye et al., arXiv 1912.09729, equation 5): where A < 0 the objective is
            max(min(R A, clip(R) A), c A), so that a token with R > c neither counts for more nor is pushed. 0: none.

    Returns:
        losses_T, not reduced.
    """
    ratios_T = torch.exp(log_ratios(logprobs_T, old_logprobs_T))
    clipped_T = ratios_T.clamp(1 - clip_low, 1 + clip_high)
    objectives_T = torch.minimum(ratios_T * advantages_T, clipped_T * advantages_T)
    if dual_clip:
        cut_T = torch.maximum(objectives_T, dual_clip * advantages_T)
        objectives_T = torch.where(advantages_T < 0, cut_T, objectives_T)
    return -objectives_T


def kl_divergence(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference): e^d - d - 1 with d = log-prob of the reference - of the policy.

    Never negative, unbiased for tokens that the policy sampled (Schulman's k3, as in GRPO's equation 4); d is capped at
    MAX_LOG_RATIO before exp.
    """
    difference_T = (reference_logprobs_T - logprobs_T).clamp(max=MAX_LOG_RATIO)
    return torch.exp(difference_T) - difference_T - 1


def log_ratios(logprobs_T: Tensor, old_logprobs_T: Tensor, sequence_ids_T: Tensor | None = None) -> Tensor:
    """log R_t, capped at MAX_LOG_RATIO from above; with `sequence_ids_T`, each answer's sum, repeated per token."""
    log_ratios_T = logprobs_T - old_logprobs_T
    if sequence_ids_T is not None:
        log_ratios_T = sums_by_answer(log_ratios_T, sequence_ids_T)
    return log_ratios_T.clamp(max=MAX_LOG_RATIO)


def sums_by_answer(values_T: Tensor, sequence_ids_T: Tensor) -> Tensor:
    """Each answer's sum, repeated per token."""
    if not len(sequence_ids_T):
        return values_T
    num_sequences = int(sequence_ids_T.max()) + 1
    return values_T.new_zeros(num_sequences).index_add(0, sequence_ids_T, values_T)[sequence_ids_T]


def implicit_negative_ratio(log_ratios_T: Tensor, p_T: Tensor) -> Tensor:
    """(1 - p R) / (1 - p): the ratio of the implicit policy of wrong answers to the one that sampled them."""
    return (1 - p_T * torch.exp(log_ratios_T)) / (1 - p_T)


def straight_through_min(values_T: Tensor, minimum: float) -> Tensor:
    """max(values, minimum) whose gradient is that of `values`, so that a clipped answer is still pushed down."""
    return values_T.clamp(min=minimum).detach() + (values_T - values_T.detach())  # the bracket is 0, to the last bit


def ratio_metrics(
    logprobs_T: Tensor, old_logprobs_T: Tensor, verdicts_T: Tensor, correct_rates_T: Tensor, *, clamp_negative: float
) -> dict[str, Tensor]:
    """Sums over tokens (and one maximum) that describe how far the policy has moved; detached scalars."""
    with torch.no_grad():
        log_ratios_T = log_ratios(logprobs_T, old_logprobs_T)
        ratios_T = log_ratios_T.exp()
        negative_T = implicit_negative_ratio(log_ratios_T, clamp_correct_rate(correct_rates_T))
        right_T = verdicts_T > 0.5
        sums = {
            "ratio_sum": ratios_T.sum(),
            "ratio_max": ratios_T.max() if len(ratios_T) else ratios_T.new_zeros(()),
            "clamped": (~right_T & (negative_T < clamp_negative)).sum().float(),
        }
        for name, mine_T in (("right", right_T), ("wrong", ~right_T)):
            sums |= {
                f"{name}_tokens": mine_T.sum().float(),
                f"{name}_logprobs": logprobs_T[mine_T].sum(),
                f"{name}_moved": (logprobs_T - old_logprobs_T)[mine_T].sum(),
            }
        return sums


def clipped_tokens(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
    sequence_ids_T: Tensor | None = None,
) -> Tensor:
    """Which tokens' ratios earn nothing more, bool: likelier by more than clip_high where that is an advantage, or
    unlikelier by more than clip_low (or likelier than dual_clip) where it is none.

    Args:
        sequence_ids_T: given, the ratio is the geometric mean of an answer's.
    """
    with torch.no_grad():
        moved_T = logprobs_T - old_logprobs_T
        if sequence_ids_T is not None:
            moved_T = means_by_answer(moved_T, sequence_ids_T)
        ratios_T = moved_T.clamp(max=MAX_LOG_RATIO).exp()
        up_T = (ratios_T > 1 + clip_high) & (advantages_T > 0)
        beyond_T = (ratios_T < 1 - clip_low) | ((ratios_T > dual_clip) if dual_clip else torch.zeros_like(up_T))
        return up_T | (beyond_T & (advantages_T < 0))


def means_by_answer(values_T: Tensor, sequence_ids_T: Tensor) -> Tensor:
    """Each answer's mean, repeated per token."""
    return sums_by_answer(values_T, sequence_ids_T) / sums_by_answer(torch.ones_like(values_T), sequence_ids_T)
