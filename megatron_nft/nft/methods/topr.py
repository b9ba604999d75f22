"""TOPR: right answers as they are, wrong ones times their likelihood ratio, up to 1 (nft/neighbours.py)."""

from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.nft.neighbours import topr_loss


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return topr_loss(
        logprobs_A,
        columns["old_logprobs"],
        columns["verdict"],
        columns["correct_rate"],
        neg_weight=algorithm.neg_weight,
        pos_weight=algorithm.pos_weight,
        normalize=algorithm.normalize,
        sequence_ids_T=columns["sequence_id"] if algorithm.ratio_type == "sequence" else None,
    )


METHOD = Method(takes=("old_logprobs", "verdict", "correct_rate", "sequence_id"), losses=_losses)
