"""The share of prompts whose groups are mixed: by it, and by how many groups say so, a round is sized."""

from dataclasses import dataclass
from typing import Self


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
        as much as the one after it: of few groups all are mixed now and then, and the next round is not to be without a
        margin."""
        earlier = self.earlier_of // 2
        self.of = graded + earlier
        self.value = max(mixed + self.earlier_value * earlier, 1) / self.of

    def end_step(self) -> None:
        """What is counted from now on is another step's."""
        self.earlier_value, self.earlier_of = self.value, self.of
