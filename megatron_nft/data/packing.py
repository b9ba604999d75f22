"""Groups -> token-budgeted microbatches, balanced over data-parallel ranks.

TrainSequences of a step come in, group by group; a TrainBatch goes out, whose every update has the same number of
microbatches on every rank. What a sequence of T tokens costs is counted in tokens:

    cost(T) = T + T^2 / attention_parity_tokens

the second part being causal attention, which takes as long as all matrices of a layer at T = attention_parity_tokens
(HFConfig has it). Ranks are balanced in tokens and in attention (the sum of T^2), microbatches of a rank in cost.
Nothing is random and nothing depends on a hash: the same groups give the same batch. Called by train.py.

Shape suffixes: _S sequences of an update, longest first; _K what a share is weighed by.
"""

import math
from collections.abc import Sequence

import numpy as np

from megatron_nft.types import TrainBatch, TrainSequence

MAX_EXTRA_COST = 1.02
"""Balancing tokens and attention alike may make the heaviest rank this much heavier than balancing cost alone. It does
where a few long sequences are most of a rank's attention, as with 8 sequences a rank: no split is even in both then,
and cost is what the other ranks wait for."""


def pack(
    groups: Sequence[Sequence[TrainSequence]],
    *,
    num_updates: int,
    dp: int,
    tokens_per_microbatch: int,
    attention_parity_tokens: float = math.inf,
) -> TrainBatch:
    """Splits groups evenly into updates, an update's sequences over ranks, a rank's into microbatches.

    A rank of an update has the smallest number of microbatches with which all ranks keep the budget; its heaviest one
    comes first. None is empty unless there are fewer sequences than microbatches.

    Args:
        groups: the sequences of each group; a multiple of `num_updates` of them.
        tokens_per_microbatch: budget of a microbatch; a single longer sequence gets one of its own.
        attention_parity_tokens: length at which a sequence's attention costs as much as the rest. inf: it is free.

    Raises:
        ValueError: the groups do not divide into `num_updates` equal parts, or there is nothing to divide.
    """
    for name, value in (("num_updates", num_updates), ("dp", dp), ("tokens_per_microbatch", tokens_per_microbatch)):
        if value < 1:
            raise ValueError(f"{name} = {value}; it must be at least 1")
    if not attention_parity_tokens > 0:
        raise ValueError(f"attention_parity_tokens = {attention_parity_tokens}; it must be more than 0, inf at most")
    if not groups or len(groups) % num_updates:
        raise ValueError(f"{len(groups)} groups do not split into {num_updates} equal updates")
    size = len(groups) // num_updates
    updates = []
    for first in range(0, len(groups), size):
        sequences = [s for group in groups[first : first + size] for s in group]
        if not sequences:
            raise ValueError(f"groups {first} to {first + size - 1} have no sequences, and an update needs one")
        updates.append(_pack_update(sequences, dp, tokens_per_microbatch, attention_parity_tokens))
    return TrainBatch.of(updates)


def _pack_update(
    sequences: list[TrainSequence], dp: int, budget: int, attention_parity_tokens: float
) -> list[list[list[TrainSequence]]]:
    sequences = sorted(sequences, key=lambda s: -s.num_tokens)  # equally long ones stay in the order they came in
    tokens_S = np.array([s.num_tokens for s in sequences])
    cost_S = tokens_S + tokens_S**2 / attention_parity_tokens
    ranks = _split_over_ranks(tokens_S, cost_S, dp)
    num_microbatches = max(math.ceil(tokens_S[rank].clip(max=budget).sum() / budget) for rank in ranks)
    while (filled := _fill_ranks(ranks, tokens_S, cost_S, max(1, num_microbatches), budget)) is None:
        num_microbatches += 1
    return [[[sequences[i] for i in members] for members in microbatches] for microbatches in filled]


def _split_over_ranks(tokens_S: np.ndarray, cost_S: np.ndarray, dp: int) -> list[list[int]]:
    """Sequence numbers of each rank: even in tokens and in attention where that can be had, else in cost."""
    squares_S = tokens_S.astype(float) ** 2
    in_both = _deal(np.stack([tokens_S / tokens_S.sum(), squares_S / squares_S.sum()], 1), dp)
    in_cost = _deal(cost_S[:, None], dp)
    heaviest_of_both, heaviest = (max(cost_S[rank].sum() for rank in ranks) for ranks in (in_both, in_cost))
    return in_both if heaviest_of_both <= MAX_EXTRA_COST * heaviest else in_cost


def _fill_ranks(
    ranks: list[list[int]], tokens_S: np.ndarray, cost_S: np.ndarray, num_microbatches: int, budget: int
) -> list[list[list[int]]] | None:
    """Sequence numbers of each microbatch of each rank, a rank's heaviest first; None: they don't fit."""
    filled = []
    for rank in _top_up(ranks, num_microbatches):
        tokens, cost = tokens_S[rank], cost_S[rank]
        # Evenly filled ones first; where the budget is too tight for that, the fullest that has room.
        shares = _deal(cost[:, None], num_microbatches, tokens, budget)
        if shares is None:
            shares = _deal(cost[:, None], num_microbatches, tokens, budget, fullest_first=True)
        if shares is None:
            return None
        shares = sorted(_top_up(shares, 1), key=lambda share: -cost[share].sum())
        filled.append([[rank[i] for i in share] for share in shares])
    return filled


def _deal(
    weights_SK: np.ndarray,
    num_shares: int,
    tokens_S: np.ndarray | None = None,
    budget: float = math.inf,
    *,
    fullest_first: bool = False,
) -> list[list[int]] | None:
    """One sequence after the other, each to the share whose largest weight stays smallest, within the budget.

    Args:
        weights_SK: a share's weight of each kind is the sum of its sequences'.
        tokens_S: what the budget counts; a sequence beyond it fits where nothing else is.
        fullest_first: each to the fullest share that has room instead (best fit).

    Returns:
        Sequence numbers of each share, or None where a sequence finds no room.
    """
    tokens_S = np.zeros(len(weights_SK)) if tokens_S is None else tokens_S
    weights, tokens = np.zeros((num_shares, weights_SK.shape[1])), np.zeros(num_shares)
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for i, (weight_K, length) in enumerate(zip(weights_SK, tokens_S, strict=True)):
        has_room = (tokens + length <= budget) | (tokens == 0)
        if not has_room.any():
            return None
        preference = -tokens if fullest_first else (weights + weight_K).max(1)
        chosen = int(np.where(has_room, preference, math.inf).argmin())  # the first of equals
        shares[chosen].append(i)
        weights[chosen] += weight_K
        tokens[chosen] += length
    return shares


def _top_up(shares: list[list[int]], least: int) -> list[list[int]]:
    """Gives shares of fewer than `least` sequences the shortest one of the share with most, while that has more."""
    shares = [list(share) for share in shares]
    while len(min(shares, key=len)) < least < len(max(shares, key=len)):
        min(shares, key=len).append(max(shares, key=len).pop())
    return shares
