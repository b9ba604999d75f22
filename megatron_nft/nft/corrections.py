"""What is done about the gap from the engine that sampled to the actor that trains: a weight for each token, and which
tokens count at all. Pure functions of log-probs; actor/pipeline.py multiplies losses, and counts.

With q the engine's probability of a token, p the actor's before the update, and rho = p / q: a gradient that is meant
to be an average over p is one over q of rho times the same, so that a weight of rho undoes the gap; its caps and bands
trade variance for bias. By token, rho leaves out that the tokens before and after came from q, too: only an answer's
product of ratios undoes all, with a variance that grows with its length; the geometric mean is on the scale of a token.

    token_truncate, sequence_truncate, geometric_truncate   min(rho, c)                 truncated importance sampling
    token_mask                                              rho within [a, b], else 0   IcePop
    sequence_mask, geometric_mask                           the same, of answers        masked importance sampling
    token_k1, token_k3, sequence_k1, sequence_k3            1 up to a bound, else out   rejection

Estimates of KL(q || p) from what q sampled, with d = log p - log q: k1 = -d, k3 = e^d - d - 1, of a token, or an
answer's mean. The bound is on |k1|. A token that is rejected leaves the denominator, as if it had not been sampled; the
zeros of a mask and what a cap cuts are values of rho, and the denominator stays.

config/corrections.py is the table of names. Shape suffix: _T answer tokens of any number of sequences, end to end.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_nft.config.corrections import CORRECTIONS, Bounds, CorrectionRow
from megatron_nft.nft.loss import MAX_LOG_RATIO, means_by_answer, sums_by_answer


def correction(
    old_logprobs_T: Tensor, engine_logprobs_T: Tensor, sequence_ids_T: Tensor, corrections: Mapping[str, Bounds]
) -> tuple[Tensor, Tensor]:
    """What a recipe's corrections make of each token.

    Args:
        old_logprobs_T, engine_logprobs_T: log-probs before the update, of the actor and of the engine.
        sequence_ids_T: int64, equal for the tokens of one answer and counted from 0.
        corrections: `AlgorithmConfig.all_corrections`.

    Returns:
        weights_T to multiply the losses with, without gradient; and kept_T, bool: what is left of the denominator.
    """
    gaps_T = (old_logprobs_T - engine_logprobs_T).detach()
    weights_T, kept_T = torch.ones_like(gaps_T), torch.ones_like(gaps_T, dtype=torch.bool)
    for name, bounds in corrections.items():
        row = CORRECTIONS[name]
        if row.rejects:
            kept_T &= _divergences(gaps_T, sequence_ids_T, row) <= bounds
        else:
            weights_T = weights_T * _weights(_log_ratios(gaps_T, sequence_ids_T, row), bounds)
    return torch.where(kept_T, weights_T, 0.0), kept_T  # what is out may have a weight that is no number


def cut_tokens(
    old_logprobs_T: Tensor, engine_logprobs_T: Tensor, sequence_ids_T: Tensor, corrections: Mapping[str, Bounds]
) -> dict[str, Tensor]:
    """How many tokens' weights a cap has cut, a mask has set to 0, a rejection has taken out; scalars by name."""
    gaps_T = (old_logprobs_T - engine_logprobs_T).detach()
    cut = {name: torch.zeros_like(gaps_T, dtype=torch.bool) for name in ("truncated", "masked", "rejected")}
    for name, bounds in corrections.items():
        row = CORRECTIONS[name]
        if row.rejects:
            cut["rejected"] |= ~(_divergences(gaps_T, sequence_ids_T, row) <= bounds)
            continue
        log_ratios_T = _log_ratios(gaps_T, sequence_ids_T, row)
        if isinstance(bounds, tuple):
            cut["masked"] |= _weights(log_ratios_T, bounds) == 0
        else:
            cut["truncated"] |= log_ratios_T > math.log(bounds)
    return {name: which_T.sum().float() for name, which_T in cut.items()}


def _log_ratios(gaps_T: Tensor, sequence_ids_T: Tensor, row: CorrectionRow) -> Tensor:
    if row.of == "sequence":
        return sums_by_answer(gaps_T, sequence_ids_T)
    return means_by_answer(gaps_T, sequence_ids_T) if row.of == "geometric" else gaps_T


def _weights(log_ratios_T: Tensor, bounds: Bounds) -> Tensor:
    ratios_T = torch.exp(log_ratios_T.clamp(max=MAX_LOG_RATIO))
    if not isinstance(bounds, tuple):
        return ratios_T.clamp(max=bounds)
    lower, upper = bounds
    return torch.where((ratios_T >= lower) & (ratios_T <= upper), ratios_T, 0.0)


def _divergences(gaps_T: Tensor, sequence_ids_T: Tensor, row: CorrectionRow) -> Tensor:
    """|k1| or k3 of each token, or of its answer."""
    estimates_T = gaps_T
    if row.kind == "k3":
        capped_T = gaps_T.clamp(max=MAX_LOG_RATIO)
        estimates_T = torch.expm1(capped_T) - capped_T
    if row.of == "sequence":
        estimates_T = means_by_answer(estimates_T, sequence_ids_T)
    return estimates_T.abs()
