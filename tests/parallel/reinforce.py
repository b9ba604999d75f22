"""A further method in one file: REINFORCE with the group's mean reward as its baseline, and a bonus for surprise.

test_methods.py adds its line to the table of methods. It takes what no method here takes: a number of each answer that
it makes of the group itself ("baseline"), and a column that the engine would have to say ("surprise").
"""

import numpy as np
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.methods import Columns, Method
from megatron_nft.observe.metrics import publish
from megatron_nft.types import RolloutGroup

BONUS = 0.1

publish("nft/weight_mean", "1", "mean", "REINFORCE: mean weight of an answer token")


def _answers(group: RolloutGroup, algorithm: AlgorithmConfig, max_answer_tokens: int) -> dict[str, np.ndarray]:
    scores_G = np.array(group.scores)
    return {"advantage": scores_G, "baseline": np.full(len(scores_G), scores_G.mean())}


def reinforce_loss(logprobs_A: Tensor, rewards_A: Tensor, baselines_A: Tensor, surprise_A: Tensor) -> Tensor:
    """- (r - b + BONUS s_t) log pi_t."""
    return -(rewards_A - baselines_A + BONUS * surprise_A) * logprobs_A


def _losses(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> Tensor:
    return reinforce_loss(logprobs_A, columns["advantage"], columns["baseline"], columns["surprise"])


def _sums(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> dict[str, Tensor]:
    return {"weight": (columns["advantage"] - columns["baseline"] + BONUS * columns["surprise"]).sum()}


METHOD = Method(
    takes=("advantage", "baseline", "surprise"),
    losses=_losses,
    answers=_answers,
    sums=_sums,
    metrics={"nft/weight_mean": ("weight", "tokens")},
)
