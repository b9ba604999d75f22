"""Mean differences of runs that are paired by their seeds, with their 95% intervals. Used by algorithms/ and async/."""

import statistics
from collections.abc import Sequence

T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Number of pairs -> two-sided 95% point of Student's t with one degree of freedom less."""


def half_width(values: Sequence[float]) -> float | None:
    """Of the interval around their mean; None for one pair, or more than the table has."""
    return T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5 if len(values) in T_95 else None


def interval(values: Sequence[float]) -> str:
    """ "+1.2 ± 0.9"; without a width the mean alone; "" of nothing."""
    if not values:
        return ""
    half = half_width(values)
    return f"{statistics.mean(values):+.1f}" + (f" ± {half:.1f}" if half is not None else "")
