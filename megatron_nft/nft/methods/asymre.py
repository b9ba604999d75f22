"""Asymmetric REINFORCE: no ratio, and a baseline beside the group's mean reward (nft/neighbours.py)."""

import numpy as np
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.nft.methods.clipped import advantages_of
from megatron_nft.nft.neighbours import weighted_loss
from megatron_nft.types import RolloutGroup


def _answers(group: RolloutGroup, algorithm: AlgorithmConfig, max_answer_tokens: int) -> dict[str, np.ndarray]:
    above_mean_G = advantages_of(group, algorithm, max_answer_tokens)["advantage"]
    return {"advantage": above_mean_G - algorithm.baseline_shift}


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return weighted_loss(logprobs_A, columns["advantage"])


METHOD = Method(takes=("advantage",), losses=_losses, answers=_answers)
