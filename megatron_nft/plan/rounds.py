"""Sampling rounds of a synchronous step: how many prompts it asks for, and how often once is not enough.

Groups are mixed by chance, and a second round lasts as long as its longest answer, so a step asks for more than it
needs in the mean (groups/queue.py has the rule; tests/unit/plan/test_rounds.py holds the two together). An asynchronous
run asks for more as it goes, and has neither margin nor rounds.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil, sqrt
from statistics import NormalDist

MARGIN = 2.0
"""Standard deviations of the number of mixed groups by which a round of a synchronous run asks for more."""
PROMPTS_PER_GROUP = 4
"""Of rollout.max_sampling_rounds times so many prompts a missing group, with some margin, a step may ask: with ten,
sampling ends where fewer than a fortieth are mixed. DAPO's limit is ten rounds of 3 prompts a group."""
FEW = 10
"""Groups beside that margin, so that chance ends a run with few groups a step no sooner than one with many."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Of a step, in the mean of many."""

    first: int  # prompts of the first round
    again: float  # share of steps that need another
    second: int  # prompts of that

    @property
    def prompts(self) -> float:
        """Asked for, over all rounds."""
        return self.first + self.again * self.second

    @property
    def mean(self) -> float:
        """Rounds a step."""
        return 1 + self.again


@cache
def sampling_rounds(groups: int, mixed_share: float) -> Rounds:
    """What a step does that knows the share of mixed groups from the steps before.

    Args:
        groups: mixed ones that are wanted.
    """
    share_of = 2 * ceil(groups / mixed_share)  # the prompts that were needed; each step counts half as much as the next
    again = 0.0 if mixed_share == 1 else NormalDist().cdf(-MARGIN)
    short = max(1, round(0.4 * sqrt(groups * (1 - mixed_share))))  # mean of what is missing, where something is
    return Rounds(
        first=asked_for(groups, mixed_share, share_of),
        again=again,
        second=asked_for(short, mixed_share, share_of),
    )


def asked_for(groups: int, mixed_share: float, share_of: int) -> int:
    """Prompts of a round: the number of mixed groups is binomial, and the share an estimate.

    Args:
        share_of: groups that the share was counted on.
    """
    variance = groups * (1 - mixed_share)
    margin = MARGIN * sqrt(variance * (1 + groups / (mixed_share * share_of)))
    return ceil((groups + margin) / mixed_share)


def most_prompts(groups: int) -> int:
    """Prompts of a step for each of rollout.max_sampling_rounds; beyond them the run ends for want of mixed groups."""
    return ceil(PROMPTS_PER_GROUP * (groups + 4 * sqrt(groups) + FEW))
