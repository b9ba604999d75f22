"""The share of prompts whose groups are mixed: by it, and by how many groups say so, a round is sized."""

from dataclasses import dataclass
from typing import Self

from megatron_nft.evaluation.accuracy import wilson_interval

SURE = 6.0
"""Standard deviations of groups that are mixed by chance, once in a billion: beyond them sampling on is of no use."""


@dataclass
class MixedShare:
    """As far as this step and those before it tell.

    Attributes:
        value: of all groups; 1 while none is known.
        of: how many groups it was counted on.
        earlier_value, earlier_of: as of the last step.
    """

    value: float = 1.0
    of: int = 0
    earlier_value: float = 1.0
    earlier_of: int = 0

    @classmethod
    def known(cls, value: float, of: int) -> Self:
        """From earlier steps alone."""
        return cls(value, of, value, of)

    def count(self, mixed: int, graded: int) -> None:
        """So many of this step's groups are mixed, of those that are graded so far. Earlier steps count, too, each half
        as much as the one after it, and together at most twice as much as this one: of few groups all are mixed now and
        then, and the next round is not to be without a margin."""
        earlier = min(self.earlier_of // 2, 2 * graded)
        self.of = graded + earlier
        self.value = max(mixed + self.earlier_value * earlier, 1) / self.of


def largest_share(mixed: int, graded: int) -> float:
    """Of mixed groups that fits what has been graded; 1 where nothing has."""
    return wilson_interval(mixed, graded, SURE)[1] if graded else 1.0
