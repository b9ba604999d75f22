"""The mathematics of an evaluation: avg@k, pass@k, maj@k of one prompt's answers, and intervals over prompts.

Pure functions. A benchmark's number is the mean of its prompts'; evaluation/scores.py takes it.
"""

import zlib
from collections.abc import Mapping, Sequence
from math import comb

import numpy as np

RESAMPLES = 10_000
INTERVAL_PERCENT = 95.0
Z_95 = 1.959964  # standard deviations on either side that hold 95% of a normal distribution
BLOCK = 2_000_000  # resampled values held at a time


def avg_at_k(rights: Sequence[bool]) -> float:
    """Share of a prompt's k answers that are right."""
    return sum(rights) / len(rights)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Probability that k of a prompt's n answers, drawn without replacement, have a right one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimate of pass@k from n >= k samples (Chen et al., arXiv 2107.03374, equation 1).
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples is not defined; k must be 1 to {num_samples}")
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def maj_at_k(answers: Sequence[str | None], rights: Sequence[bool]) -> float:
    """Probability that the most frequent answer is right; of equally frequent ones, each is chosen equally often.

    Args:
        answers: the final answers, as texts; those equal but for spaces are one. None has no vote (no final answer
            found, or cut off); with no vote at all the majority is wrong.
        rights: whether each is right.
    """
    right_votes: dict[str, list[bool]] = {}
    for answer, right in zip(answers, rights, strict=True):
        if answer is not None:
            right_votes.setdefault("".join(answer.split()), []).append(right)
    most = max((len(votes) for votes in right_votes.values()), default=0)
    # Equal texts have equal verdicts, but for those that only spaces tell apart: then a candidate is partly right.
    winners = [sum(votes) / len(votes) for votes in right_votes.values() if len(votes) == most]
    return sum(winners) / len(winners) if winners else 0.0


def wilson_interval(num_right: int, num_prompts: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a share of prompts (Wilson's score interval): unlike a bootstrap's, it has a width at 0 and 1.

    Args:
        z: standard deviations on either side; 95% by default.
    """
    share, z2_n = num_right / num_prompts, z**2 / num_prompts
    middle, half = share + z2_n / 2, z * (share * (1 - share) / num_prompts + z2_n / (4 * num_prompts)) ** 0.5
    return max(0.0, (middle - half) / (1 + z2_n)), min(1.0, (middle + half) / (1 + z2_n))


def bootstrap_means(values_N: Sequence[float], seed: int) -> np.ndarray:
    """Means of RESAMPLES samples of the prompts' values, drawn with replacement: float64 [RESAMPLES], same by seed."""
    values, draws = np.asarray(values_N, dtype=np.float64), np.random.default_rng(seed)
    rows = max(1, BLOCK // len(values))
    blocks = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([values[draws.integers(len(values), size=(b, len(values)))].mean(axis=1) for b in blocks])


def seed_of(name: str, seed: int) -> int:
    """A benchmark's own seed of the bootstrap: independent of other benchmarks', for the interval of their average."""
    return zlib.crc32(f"{seed}/{name}".encode())


def average_of(values: Mapping[str, Sequence[float]], seed: int) -> tuple[float, float, float]:
    """Mean of the benchmarks' means, each benchmark weighing the same, and its 95% interval.

    Args:
        values: benchmark -> its prompts' values.
    """
    means_B = [bootstrap_means(its, seed_of(name, seed)) for name, its in values.items()]
    mean = sum(sum(its) / len(its) for its in values.values()) / len(values)
    return (mean, *interval(np.mean(means_B, axis=0)))


def interval(means_B: np.ndarray) -> tuple[float, float]:
    """The middle 95% of resampled means."""
    outside = (100.0 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(means_B, [outside, 100.0 - outside])
    return float(low), float(high)
