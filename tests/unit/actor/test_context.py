"""Which tokens a context-parallel rank holds: every token once, and the same work for every rank."""

import pytest
import torch

from megatron_nft.actor.context import ContextShare


def test_pieces_by_hand():
    """Two sequences of 8 and 4 tokens over 2 ranks, in pieces of 2 and 1."""
    shares = [ContextShare([8, 4], 2, rank) for rank in (0, 1)]
    assert [share.tokens.tolist() for share in shares] == [[0, 1, 6, 7, 8, 11], [2, 3, 4, 5, 9, 10]]
    gathered = torch.cat([share.tokens for share in shares])
    assert gathered[shares[0].gathered_T].tolist() == list(range(12))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_positions_are_those_of_the_tokens(size):
    lengths = [8 * size, 2 * size, 4 * size]
    starts = [0, 8 * size, 10 * size]
    for rank in range(size):
        share = ContextShare(lengths, size, rank)
        positions, is_real = share.positions(torch.tensor(lengths)[:, None])
        tokens = torch.cat([start + p[real] for start, p, real in zip(starts, positions, is_real, strict=True)])
        assert tokens.tolist() == share.tokens.tolist()
        # A query at position n sees n + 1 keys.
        assert int((positions + 1)[is_real].sum()) * size == sum(n * (n + 1) // 2 for n in lengths)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_each_rank_holds_comes_back_in_order(size):
    lengths, index = [8 * size, 2 * size], torch.tensor([3, 4, 7, 8 * size, 8 * size + 1])
    shares = [ContextShare(lengths, size, rank) for rank in range(size)]
    padded = []
    for share in shares:
        own, local, order, most = share.split(index)
        assert torch.equal(share.tokens[local], index[own])
        padded.append(torch.cat([index[own], torch.full((most - len(local),), -1)]))
    assert torch.equal(torch.cat(padded)[order], index)


def test_a_sequence_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="do not split into 2 x 2 pieces"):
        ContextShare([8, 6], 2, 0)
