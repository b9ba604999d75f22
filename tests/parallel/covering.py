"""Fewer rows of a table that still meet everything that any row meets: what a push runs, while --all runs the table."""

from collections.abc import Callable, Collection, Hashable, Sequence
from itertools import combinations
from typing import TypeVar

import pytest

Row = TypeVar("Row")


def pairs(row: Sequence[Hashable]) -> set[Hashable]:
    """Every two columns of a row with their values: ((0, "a"), (2, "b")) ..."""
    return set(combinations(enumerate(row), 2))


def covering(rows: Sequence[Row], meets: Callable[[Row], Collection[Hashable]]) -> list[Row]:
    """Rows, in their order, that meet all that the rows meet, and of which none could be left out.

    Greedy: always the row that adds most, of equals the first.
    """
    sets = [set(meets(row)) for row in rows]
    missing, chosen = set().union(*sets), []
    while missing:
        best = max(range(len(rows)), key=lambda number: len(sets[number] & missing))
        chosen.append(best)
        missing -= sets[best]
    for number in list(chosen):
        others = [sets[other] for other in chosen if other != number]
        if sets[number] <= set().union(*others):
            chosen.remove(number)
    return [rows[number] for number in sorted(chosen)]


def at_night(rows: Sequence[Row], on_a_push: Collection[Row], why: str) -> list[Row]:
    """The rows for `pytest.mark.parametrize`; those that aren't run on a push wait for --all."""
    return [row if row in on_a_push else pytest.param(row, marks=pytest.mark.night(why)) for row in rows]
