"""The seed of every sampling round is its own, and the same on every machine."""

from itertools import product

import numpy as np

from megatron_nft.groups.seeds import sampling_seed


def test_each_run_step_and_round_has_its_own():
    seeds = {sampling_seed(*place) for place in product(range(1, 4), range(1, 30), range(10))}
    assert len(seeds) == 3 * 29 * 10


def test_they_are_numpys_seed_sequence():
    assert sampling_seed(1, 2, 3) == int(np.random.SeedSequence([1, 2, 3]).generate_state(1)[0]) == SEED_1_2_3


SEED_1_2_3 = 3822189696
