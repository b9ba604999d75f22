"""NFT, and RFT with neg_weight 0: learns from each answer's verdict and its group's correct rate (nft/loss.py)."""

from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.loss import nft_loss
from megatron_nft.nft.methods import Columns, Method


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return nft_loss(
        logprobs_A,
        columns["old_logprobs"],
        columns["verdict"],
        columns["correct_rate"],
        neg_weight=algorithm.neg_weight,
        pos_weight=algorithm.pos_weight,
        normalize=algorithm.normalize,
        clamp_negative=algorithm.clamp_negative,
        sequence_ids_T=columns["sequence_id"] if algorithm.ratio_type == "sequence" else None,
    )


METHOD = Method(
    takes=("old_logprobs", "verdict", "correct_rate", "sequence_id"),
    losses=_losses,
    metrics={"nft/clamped_fraction": ("clamped", "wrong_tokens")},
)
