"""Invariants of data/packing.py."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_nft.data.packing import pack
from megatron_nft.types import TrainSequence


def sequence(length, answer=1):
    return TrainSequence(token_ids_T=np.arange(length, dtype=np.int32), num_prompt_tokens=length - answer, verdict=1.0,
                         correct_rate=0.5, engine_logprobs_A=np.zeros(answer, np.float32))  # fmt: skip


def lengths_of(batch):
    return [[[[s.num_tokens for s in m.sequences] for m in rank] for rank in update] for update in batch.updates]


def long_tailed(num_groups, seed):
    """Groups of 16 with a median of 3,000 tokens, 1 in 20 cut at 14,336."""
    draws = np.random.default_rng(seed)
    level = draws.normal(math.log(3000), 0.7, (num_groups, 1)) + draws.normal(0, 0.7, (num_groups, 16))
    return [[sequence(200 + int(length)) for length in row] for row in np.exp(level).clip(1, 14336)]


def random_groups(num_groups, seed=0):
    lengths = np.random.default_rng(seed).integers(2, 60, (num_groups, 4))
    return [[sequence(int(length)) for length in row] for row in lengths]


@pytest.mark.parametrize("dp", [1, 2, 3])
def test_every_sequence_once_and_budget_kept(dp):
    groups = random_groups(8)
    batch = pack(groups, num_updates=2, dp=dp, tokens_per_microbatch=100)
    packed = sorted(id(s) for s in batch.sequences)
    assert packed == sorted(id(s) for group in groups for s in group)
    for update in batch.updates:
        assert len(update) == dp
        assert len({len(rank) for rank in update}) == 1, "ranks run equally many microbatches"
        assert all(m.num_tokens <= 100 for rank in update for m in rank)


def test_updates_take_groups_in_order():
    groups = random_groups(4)
    batch = pack(groups, num_updates=2, dp=1, tokens_per_microbatch=1000)
    first = {id(s) for rank in batch.updates[0] for m in rank for s in m.sequences}
    assert first == {id(s) for group in groups[:2] for s in group}


def test_a_sequence_beyond_the_budget_stands_alone():
    long = sequence(500)
    batch = pack([[sequence(10), long, sequence(10)]], num_updates=1, dp=1, tokens_per_microbatch=100)
    (rank,) = batch.updates[0]
    (holder,) = [m for m in rank if any(s is long for s in m.sequences)]
    assert len(holder.sequences) == 1


def test_fewer_sequences_than_ranks_leaves_empty_microbatches():
    batch = pack([[sequence(5)]], num_updates=1, dp=3, tokens_per_microbatch=100)
    assert sorted(len(rank[0].sequences) for rank in batch.updates[0]) == [0, 0, 1]


@given(
    lengths=st.lists(st.integers(2, 150), min_size=1, max_size=60),
    dp=st.integers(1, 7),
    parity=st.sampled_from([math.inf, 65000.0, 50.0]),
)
def test_any_batch(lengths, dp, parity):
    given_sequences = [sequence(length) for length in lengths]
    arguments = {"num_updates": 1, "dp": dp, "tokens_per_microbatch": 100, "attention_parity_tokens": parity}
    (update,) = pack([given_sequences], **arguments).updates
    assert sorted(id(s) for rank in update for m in rank for s in m.sequences) == sorted(map(id, given_sequences))
    assert len(update) == dp and len({len(rank) for rank in update}) == 1
    assert all(m.num_tokens <= 100 or len(m.sequences) == 1 for rank in update for m in rank)
    num_microbatches = dp * len(update[0])
    assert sum(not m.sequences for rank in update for m in rank) == max(0, num_microbatches - len(lengths))
    for rank in update:
        costs = [sum(s.num_tokens + s.num_tokens**2 / parity for s in m.sequences) for m in rank]
        assert costs == sorted(costs, reverse=True)
    again = pack([[sequence(length) for length in lengths]], **arguments)
    assert lengths_of(again) == lengths_of(pack([given_sequences], **arguments))


def test_hand_computed():
    """Two ranks of 100 tokens, as even in the sum of squares as can be; each needs two microbatches of 60."""
    batch = pack([[sequence(n) for n in (10, 50, 40, 50, 40, 10)]], num_updates=1, dp=2, tokens_per_microbatch=60)
    assert lengths_of(batch) == [[[[50], [40, 10]], [[50], [40, 10]]]]


def test_a_tight_budget_is_met_with_fewest_microbatches():
    """Evenly filled, 5 + 3 and 5 + 4 leave no room for the last 3; the fullest with room does it."""
    batch = pack([[sequence(n) for n in (5, 5, 4, 3, 3)]], num_updates=1, dp=1, tokens_per_microbatch=10)
    assert lengths_of(batch) == [[[[5, 5], [4, 3, 3]]]]


def test_a_rank_of_few_sequences_gets_more_before_a_microbatch_stays_empty():
    lengths = [1000, 50, 50, 50, 50, 50]
    (update,) = lengths_of(pack([[sequence(n) for n in lengths]], num_updates=1, dp=2, tokens_per_microbatch=100))
    assert update == [[[1000], [50], [50]], [[50], [50], [50]]]


@pytest.mark.parametrize("dp", [1, 2, 4, 8, 16])
def test_ranks_and_microbatches_are_balanced(dp):
    """The published sizes: updates of 32 groups of 16."""
    batch = pack(
        long_tailed(128, seed=0), num_updates=4, dp=dp, tokens_per_microbatch=32768, attention_parity_tokens=65000.0
    )
    for update in lengths_of(batch):
        ranks = [np.concatenate(rank) for rank in update]
        for power in (1, 2):
            loads = np.array([(rank**power).sum() for rank in ranks])
            assert loads.max() < 1.03 * loads.mean()
        costs = np.array([[sum(n + n**2 / 65000.0 for n in m) for m in rank] for rank in update])
        assert costs.max(0).sum() < 1.03 * costs.sum(1).mean()  # the heaviest of every rank's first microbatch, ...


def test_cost_goes_first_where_tokens_and_attention_cannot_both_be_even():
    """Half of the ranks must take a long sequence each, and with it far more than their share of attention."""
    lengths = [1000] * 4 + [100] * 80
    (update,) = lengths_of(
        pack(
            [[sequence(n) for n in lengths]],
            num_updates=1,
            dp=8,
            tokens_per_microbatch=10000,
            attention_parity_tokens=65000.0,
        )
    )
    costs = [sum(n + n**2 / 65000.0 for n in m) for rank in update for m in rank]
    assert max(costs) < 1.05 * np.mean(costs)


def test_equal_sequences_keep_their_order():
    given_sequences = [sequence(10) for _ in range(6)]
    (update,) = pack([given_sequences], num_updates=1, dp=2, tokens_per_microbatch=100).updates
    number = {id(s): i for i, s in enumerate(given_sequences)}
    assert [[number[id(s)] for s in m.sequences] for rank in update for m in rank] == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("groups", "setting", "message"),
    [
        (3, {"num_updates": 2}, "3 groups do not split into 2 equal updates"),
        (0, {}, "0 groups do not split into 1"),
        (2, {"num_updates": 0}, "num_updates = 0; it must be at least 1"),
        (2, {"dp": 0}, "dp = 0; it must be at least 1"),
        (2, {"tokens_per_microbatch": 0}, "tokens_per_microbatch = 0; it must be at least 1"),
        (2, {"attention_parity_tokens": 0.0}, r"attention_parity_tokens = 0\.0; it must be more than 0"),
    ],
)
def test_bad_input_is_refused(groups, setting, message):
    with pytest.raises(ValueError, match=message):
        pack(random_groups(groups), **{"num_updates": 1, "dp": 1, "tokens_per_microbatch": 100, **setting})


def test_an_update_without_sequences_is_refused():
    with pytest.raises(ValueError, match="groups 1 to 1 have no sequences"):
        pack([[sequence(5)], []], num_updates=2, dp=1, tokens_per_microbatch=100)
