"""avg@k, pass@k, maj@k: hand-computed and brute-force values; intervals."""

import random
from collections import Counter
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from megatron_nft.evaluation.accuracy import (
    RESAMPLES,
    avg_at_k,
    bootstrap_means,
    interval,
    maj_at_k,
    pass_at_k,
    wilson_interval,
)


def test_avg_by_hand():
    assert avg_at_k([True, False, False, True]) == 0.5
    assert avg_at_k([False]) == 0.0


def test_pass_by_hand():
    assert pass_at_k(1, 0, 1) == 0.0
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == 0.5  # of 6 pairs, 3 have the right one
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(4, 2, 3) == 1.0
    assert pass_at_k(32, 1, 32) == 1.0


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_is_the_share_of_subsets_with_a_right_answer(n):
    for num_right in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations(range(n), k))
            share = sum(any(i < num_right for i in subset) for subset in subsets) / len(subsets)
            assert pass_at_k(n, num_right, k) == pytest.approx(share)


def test_pass_is_unbiased():
    """Its mean over draws of n answers, each right with probability p, is 1 - (1 - p)^k."""
    n, k, p = 6, 3, 0.3
    mean = sum(
        p ** sum(rights) * (1 - p) ** (n - sum(rights)) * pass_at_k(n, sum(rights), k)
        for rights in product((0, 1), repeat=n)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_pass_of_more_than_there_is_is_refused(k):
    with pytest.raises(ValueError, match="of 4 samples is not defined"):
        pass_at_k(4, 1, k)


def test_pass_of_many_samples_does_not_overflow():
    assert 0 < pass_at_k(4096, 1, 2048) < 1


def test_majority_by_hand():
    assert maj_at_k(["7", "8", "7"], [True, False, True]) == 1.0
    assert maj_at_k(["7", "8", "8"], [True, False, False]) == 0.0
    assert maj_at_k(["7", "8"], [True, False]) == 0.5
    assert maj_at_k(["7", "8", "9"], [True, False, False]) == pytest.approx(1 / 3)
    assert maj_at_k(["7", None, None], [True, False, False]) == 1.0  # those without an answer have no vote
    assert maj_at_k([None, None], [False, False]) == 0.0
    assert maj_at_k([r"\frac{1}{2}", r"\frac{1} {2}", "3"], [True, True, False]) == 1.0


def test_majority_against_brute_force():
    """The tie broken in every possible way."""
    rng = random.Random(1)
    for _ in range(300):
        k = rng.randint(1, 9)
        answers = [rng.choice(["1", "2", "3", None]) for _ in range(k)]
        right = rng.choice(["1", "2", "4"])
        votes = Counter(answer for answer in answers if answer is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        expected = sum(winner == right for winner in winners) / len(winners) if winners else 0.0
        assert maj_at_k(answers, [answer == right for answer in answers]) == pytest.approx(expected)


def test_one_sample_makes_all_three_equal():
    for answer, right in (("7", True), ("8", False), (None, False)):
        assert avg_at_k([right]) == pass_at_k(1, int(right), 1) == maj_at_k([answer], [right]) == float(right)


def test_bootstrap_is_reproducible_and_of_the_right_width():
    values = [1.0] * 120 + [0.0] * 280
    means_B = bootstrap_means(values, seed=1)
    assert means_B.shape == (RESAMPLES,)
    assert np.array_equal(means_B, bootstrap_means(values, seed=1))
    assert not np.array_equal(means_B, bootstrap_means(values, seed=2))
    low, high = interval(means_B)
    deviation = (0.3 * 0.7 / 400) ** 0.5
    assert low == pytest.approx(0.3 - 1.96 * deviation, abs=0.005)
    assert high == pytest.approx(0.3 + 1.96 * deviation, abs=0.005)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = interval(bootstrap_means(rng.random(60) < 0.4, seed))
        covered += low <= 0.4 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_equal_values_have_an_interval_of_no_width_and_many_prompts_fit():
    assert interval(bootstrap_means([0.25] * 3, 1)) == (0.25, 0.25)
    assert len(bootstrap_means([0.0, 1.0] * 5000, 1)) == RESAMPLES


@pytest.mark.parametrize(
    ("num_right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_wilson_by_hand(num_right, n, low, high):
    assert wilson_interval(num_right, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("n", [20, 64])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_a_wilson_interval_holds_the_true_rate_about_95_times_in_100(n, rate):
    """Exactly: over all outcomes of n prompts, each right with that rate."""
    held = sum(
        comb(n, c) * rate**c * (1 - rate) ** (n - c)
        for c in range(n + 1)
        if wilson_interval(c, n)[0] <= rate <= wilson_interval(c, n)[1]
    )
    assert 0.90 < held < 0.99
