"""The methods, one file each: what a judged group becomes, and what each of its tokens loses.

Settings come in, their Method goes out. config/methods.py is the table of names, and says which file has which. Called
by nft/groups.py for what an answer's row needs, and by actor/pipeline.py for losses and metrics; neither knows any
method by name. Shape suffixes: _A answer tokens of any number of sequences, end to end, _G the answers of a group.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.config.methods import METHODS
from megatron_nft.types import RolloutGroup

Columns = Mapping[str, Tensor]
"""Those that the method takes, by name: [A] or [A, ...]."""


def no_values(group: RolloutGroup, algorithm: AlgorithmConfig, max_answer_tokens: int) -> dict[str, np.ndarray]:
    """For a method that needs no more than each answer's verdict and its group's correct rate."""
    return {}


def no_sums(logprobs_A: Tensor, columns: Columns, algorithm: AlgorithmConfig) -> dict[str, Tensor]:
    """For a method without metrics of its own."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table. All functions are pure, and get the recipe's settings of the algorithm."""

    takes: tuple[str, ...]
    """What `losses` and `sums` read of each answer token, by name. There are always "old_logprobs", "engine_logprobs",
    "reference_logprobs" (zeros without a reference model), "verdict" and "correct_rate" of its answer, "sequence_id"
    (equal for the tokens of one answer, counted from 0); besides what `answers` makes, and the rollouts' further
    columns."""
    losses: Callable[[Tensor, Columns, AlgorithmConfig], Tensor]
    """(logprobs_A, columns, settings) -> losses [A], neither weighted nor reduced; logprobs_A carries the gradient."""
    answers: Callable[[RolloutGroup, AlgorithmConfig, int], dict[str, np.ndarray]] = no_values
    """(a judged group, settings, rollout.max_answer_tokens) -> numbers [G] by name, such as "advantage": the loss finds
    each answer's at all its tokens."""
    sums: Callable[[Tensor, Columns, AlgorithmConfig], dict[str, Tensor]] = no_sums
    """(detached logprobs_A, columns, settings) -> scalars that are summed over tokens, microbatches and ranks."""
    metrics: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Public name (observe/metrics.py; `publish` makes one public) -> (a sum, what it is divided by: another one,
    "tokens" or "answers"). Sums are those of `sums` and of nft/loss.py's ratio_metrics."""


def method_of(algorithm: AlgorithmConfig) -> Method:
    """The method that a recipe names: METHOD of its module."""
    return import_module(METHODS[algorithm.name].module).METHOD
