"""From judged groups to training sequences: which groups are kept, and what a method makes of one.

Judged RolloutGroups come in, TrainSequences go out. Called by train.py and the sources of groups.
"""

from collections.abc import Iterable

import numpy as np

from megatron_nft.config import AlgorithmConfig
from megatron_nft.config.methods import SCORED
from megatron_nft.nft.methods import method_of
from megatron_nft.types import RolloutGroup, TrainSequence


class ScoreError(ValueError):
    """A grader gives scores, and the method takes right or wrong."""


def teaches(group: RolloutGroup, algorithm: AlgorithmConfig) -> bool:
    """Whether the method learns anything of a judged group: of one whose answers differ in what they are worth; and, of
    a method that compares no answer with its group's, of any with an answer that it weighs."""
    if not algorithm.learns_from_unmixed:
        return group.is_mixed
    return any(algorithm.weighs(right=is_right) for is_right in group.graded.rights)


def what_teaches(algorithm: AlgorithmConfig) -> str:
    """The same in words."""
    return f"answers that {algorithm.name} weighs" if algorithm.learns_from_unmixed else "right and wrong answers"


def check_scores(groups: Iterable[RolloutGroup], algorithm: AlgorithmConfig) -> None:
    """Refuses scores that the method takes no notice of: they would be lost without a word.

    Raises:
        ScoreError: a verdict is worth something other than 1 for a right and 0 for a wrong answer.
    """
    if algorithm.takes_scores:
        return
    for group in groups:
        for verdict in group.verdicts:
            if verdict.is_scored:
                raise ScoreError(
                    f"the grader of data source {group.prompt.data_source!r} scores an answer to "
                    f"{group.prompt.prompt_id} with {verdict.reward:g}, and algorithm.name = "
                    f'"{algorithm.name}" takes right or wrong only; let the grader say 1 or 0, or choose one of '
                    f"{', '.join(SCORED)}"
                )


def to_sequences(group: RolloutGroup, algorithm: AlgorithmConfig, *, max_answer_tokens: int) -> list[TrainSequence]:
    """One TrainSequence per graded rollout of a judged group, with what the method makes of the group.

    Raises:
        ScoreError: the group has scores, and the method takes right or wrong.
    """
    check_scores([group], algorithm)
    group = group.graded
    prompt_P = group.prompt.token_ids_P
    values_G = method_of(algorithm).answers(group, algorithm, max_answer_tokens)
    advantages_G = values_G.pop("advantage", np.zeros(len(group.rollouts)))
    return [
        TrainSequence(
            token_ids_T=np.concatenate([prompt_P, rollout.token_ids_A]).astype(np.int32),
            num_prompt_tokens=len(prompt_P),
            verdict=float(right),
            correct_rate=group.correct_rate,
            advantage=float(advantages_G[i]),
            engine_logprobs_A=rollout.engine_logprobs_A,
            experts_R=rollout.experts_R,
            columns={
                **rollout.columns,
                **{name: np.full(len(rollout.token_ids_A), x[i], np.float32) for name, x in values_G.items()},
            },
        )
        for i, (rollout, right) in enumerate(zip(group.rollouts, group.rights, strict=True))
    ]
