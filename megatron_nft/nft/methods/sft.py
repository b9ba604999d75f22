"""Supervised fine-tuning: the positive branch without a ratio, on given answers (megatron_nft/sft.py)."""

import torch
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.nft.neighbours import weighted_loss


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return weighted_loss(logprobs_A, torch.ones_like(logprobs_A))


METHOD = Method(takes=(), losses=_losses)
