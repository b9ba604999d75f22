"""Invariants of data/packing.py."""

import numpy as np
import pytest

from megatron_nft.data.packing import pack
from megatron_nft.types import TrainSequence


def sequence(length, answer=1):
    return TrainSequence(token_ids_T=np.arange(length, dtype=np.int32), num_prompt_tokens=length - answer, verdict=1.0,
                         correct_rate=0.5, engine_logprobs_A=np.zeros(answer, np.float32))  # fmt: skip


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


def test_ranks_are_balanced():
    batch = pack(random_groups(32), num_updates=1, dp=4, tokens_per_microbatch=200)
    loads = [sum(m.num_tokens for m in rank) for rank in batch.updates[0]]
    assert max(loads) - min(loads) < 60


def test_uneven_updates_are_refused():
    with pytest.raises(ValueError, match="3 groups do not split into 2"):
        pack(random_groups(3), num_updates=2, dp=1, tokens_per_microbatch=100)
