"""CISPO: the clipped likelihood ratio weighs a token, which never loses its gradient (nft/neighbours.py)."""

from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.loss import log_ratios
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.nft.methods.clipped import CLIPPED_METRICS, advantages_of, by_verdict
from megatron_nft.nft.neighbours import cispo_loss


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return cispo_loss(
        logprobs_A,
        columns["old_logprobs"],
        columns["advantage"],
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
    )


def _sums(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> dict[str, Tensor]:
    """Here a clipped ratio is a weight that was cut, whichever way the token is pushed."""
    ratios_A = log_ratios(logprobs_A, columns["old_logprobs"]).exp()
    cut_A = (ratios_A < 1 - algorithm.clip_low) | (ratios_A > 1 + algorithm.clip_high)
    return by_verdict(cut_A, columns["verdict"])


METHOD = Method(
    takes=("old_logprobs", "advantage", "verdict"),
    losses=_losses,
    answers=advantages_of,
    sums=_sums,
    metrics=CLIPPED_METRICS,
)
