"""How long a prompt's answers will be, as far as can be known: so long as they were last time.

The groups of every step come in; source.py has the longest expected sampled first, so that no round ends with an answer
that was begun late. Nothing but the order of a round's requests depends on it.
"""

from collections.abc import Mapping
from math import inf
from typing import Any

from megatron_nft.types import Prompt, RolloutGroup


class ExpectedTokens:
    """The mean length of the newest answers to each prompt."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}  # prompt_id -> policy_version, tokens

    def add(self, group: RolloutGroup) -> None:
        """A group has been sampled. In whichever order groups come, the same is known."""
        lengths = [len(rollout.token_ids_A) for rollout in group.rollouts]
        newest = max(rollout.policy_version for rollout in group.rollouts)
        found = (newest, sum(lengths) // len(lengths))
        name = group.prompt.prompt_id
        self._known[name] = max(self._known.get(name, found), found)

    def of(self, prompt: Prompt) -> float:
        """Tokens of an answer to it; infinite where none is known. (By a prompt's own length they would be in disorder,
        and a step wait longer for those whose turn it is: benchmarks/scale.)"""
        _, tokens = self._known.get(prompt.prompt_id, (0, inf))
        return tokens

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(known) for name, known in self._known.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Knows what was known."""
        self._known = {name: (version, tokens) for name, (version, tokens) in state.items()}
