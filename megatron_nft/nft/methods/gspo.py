"""GSPO: one likelihood ratio an answer, the geometric mean of its tokens', clipped (nft/neighbours.py)."""

from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.loss import clipped_tokens
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.nft.methods.clipped import CLIPPED_METRICS, advantages_of, by_verdict
from megatron_nft.nft.neighbours import gspo_loss


def _arguments(columns: Columns, algorithm: AlgorithmConfig) -> dict:
    return {
        "old_logprobs_T": columns["old_logprobs"],
        "advantages_T": columns["advantage"],
        "sequence_ids_T": columns["sequence_id"],
        "clip_low": algorithm.clip_low,
        "clip_high": algorithm.clip_high,
    }


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return gspo_loss(logprobs_A, **_arguments(columns, algorithm))


def _sums(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> dict[str, Tensor]:
    return by_verdict(clipped_tokens(logprobs_A, **_arguments(columns, algorithm)), columns["verdict"])


METHOD = Method(
    takes=("old_logprobs", "advantage", "verdict", "sequence_id"),
    losses=_losses,
    answers=advantages_of,
    sums=_sums,
    metrics=CLIPPED_METRICS,
)
