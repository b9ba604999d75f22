"""Prompts go out to the engines, whole groups of answers come back. train and evaluate call it once a round."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from megatron_nft.types import Prompt, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are sampled. The same seed, prompts and weights give the same answers: vary it between rounds."""

    group_size: int  # answers per prompt
    temperature: float  # 0: greedy
    top_p: float = 1.0
    max_answer_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.group_size > 1:
            raise ValueError(
                f"temperature 0 gives {self.group_size} equal answers; set group_size = 1 or a temperature above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt that an engine is asked to answer while it answers others."""

    request_id: int  # unique in a run, counted up
    prompt: Prompt
    seed_id: str  # of which the answers' seeds are made: the prompt's id, or that with "#2" if it comes again
    sampling: Sampling


def sampling_seed(run_seed: int, step: int, sampling_round: int) -> int:
    """The seed of one sampling round: the same on every machine, different in every round of a run."""
    return int(np.random.SeedSequence([run_seed, step, sampling_round]).generate_state(1)[0])


class Engines(Protocol):
    """The rollout engines, seen from here; cluster/workers holds the real ones."""

    num_engines: int

    def generate(self, shards: list[list[Prompt]], sampling: Sampling) -> Iterator[RolloutGroup]:
        """Answers shard i on engine i, all at once; yields groups in the order in which they get ready."""


def sample_groups(
    engines: Engines,
    prompts: list[Prompt],
    sampling: Sampling,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[RolloutGroup]:
    """Samples `sampling.group_size` answers to each prompt and returns the groups in the prompts' order.

    Which engine answers a prompt does not matter for its answers: each prompt has a seed of its own.

    Args:
        on_progress: called after every group with the groups done and the groups in all.

    Raises:
        RuntimeError: the engines returned without an answer to some prompt.
    """
    unique = with_unique_ids(prompts)
    place = {prompt.prompt_id: index for index, prompt in enumerate(unique)}
    groups: list[RolloutGroup | None] = [None] * len(prompts)
    for done, group in enumerate(stream_groups(engines, unique, sampling), start=1):
        index = place[group.prompt.prompt_id]
        groups[index] = replace(group, prompt=prompts[index])
        if on_progress:
            on_progress(done, len(prompts))
    unanswered = [prompt.prompt_id for prompt, group in zip(prompts, groups, strict=True) if group is None]
    if unanswered:
        raise RuntimeError(f"the engines ended without answers to {len(unanswered)} prompts, e.g. {unanswered[:5]}")
    return [group for group in groups if group is not None]


def stream_groups(engines: Engines, prompts: list[Prompt], sampling: Sampling) -> Iterator[RolloutGroup]:
    """Samples `sampling.group_size` answers to each prompt; yields the groups in the order in which they get ready.

    Args:
        prompts: with different prompt_ids.
    """
    # Round-robin, since prompts of similar length (and answers of similar length) tend to be neighbours in a data set.
    yield from engines.generate([prompts[i :: engines.num_engines] for i in range(engines.num_engines)], sampling)


def with_unique_ids(prompts: list[Prompt]) -> list[Prompt]:
    """Gives a prompt that comes again in one round (where an epoch ends, say) its own id, so its own seed."""
    seen: Counter[str] = Counter()
    unique = []
    for prompt in prompts:
        seen[prompt.prompt_id] += 1
        count = seen[prompt.prompt_id]
        unique.append(prompt if count == 1 else replace(prompt, prompt_id=f"{prompt.prompt_id}#{count}"))
    return unique
