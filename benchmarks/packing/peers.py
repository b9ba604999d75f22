"""Other ways to pack an update, for comparison: lengths come in, in tokens; their microbatches by rank go out.

First fit in arrival order, first fit decreasing, and Karmarkar-Karp's largest differencing method on tokens, which verl
balances by. All give every rank of an update equally many microbatches, with empty ones where need be.
"""

import heapq
import math

Update = list[list[list[int]]]
"""[rank][microbatch][sequence]: tokens."""


def arrival(lengths: list[int], dp: int, budget: int) -> Update:
    """Round robin over ranks, then first fit, in the order in which the answers came."""
    return _even_counts([_first_fit(lengths[rank::dp], budget) for rank in range(dp)])


def decreasing(lengths: list[int], dp: int, budget: int) -> Update:
    """Longest first to the rank with the fewest tokens, then first fit: what data/packing.py did until 2026-11-22."""
    ranks: list[list[int]] = [[] for _ in range(dp)]
    loads = [0] * dp
    for length in sorted(lengths, reverse=True):
        lightest = loads.index(min(loads))
        ranks[lightest].append(length)
        loads[lightest] += length
    return _even_counts([_first_fit(rank, budget) for rank in ranks])


def differencing(lengths: list[int], dp: int, budget: int, *, equal_size: bool) -> Update:
    """Karmarkar-Karp over ranks, and again over a rank's microbatches, as many as the tokens of the fullest rank need.

    Nothing holds a microbatch to the budget but the balance.

    Args:
        equal_size: ranks get equally many sequences.
    """
    ranks = largest_differencing(lengths, dp, equal_size=equal_size)
    num_microbatches = max(math.ceil(sum(rank) / budget) for rank in ranks)
    return [largest_differencing(rank, num_microbatches, equal_size=False) for rank in ranks]


def largest_differencing(lengths: list[int], num_parts: int, *, equal_size: bool) -> list[list[int]]:
    """Splits lengths into parts of nearly equal sums.

    Merges the two partitions that are least even, the heaviest part of one with the lightest of the other, until one
    partition is left.
    """
    ordered = sorted(lengths, reverse=True)
    step = num_parts if equal_size else 1
    heap = []
    for number, first in enumerate(range(0, len(ordered), step)):
        items = ordered[first : first + step]
        parts = [[n] for n in items] + [[] for _ in range(num_parts - len(items))]
        heap.append((sum(parts[-1]) - sum(parts[0]), number, parts))
    heapq.heapify(heap)
    number = len(heap)  # ties: the older one first
    while len(heap) > 1:
        (_, _, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        merged = [a + b for a, b in zip(one, reversed(other), strict=True)]
        merged.sort(key=sum, reverse=True)
        heapq.heappush(heap, (sum(merged[-1]) - sum(merged[0]), number, merged))
        number += 1
    return heap[0][2]


def _first_fit(lengths: list[int], budget: int) -> list[list[int]]:
    microbatches: list[list[int]] = []
    room: list[int] = []
    for length in lengths:
        fits = next((i for i, free in enumerate(room) if free >= length), None)
        if fits is None:
            microbatches.append([])
            room.append(budget)
            fits = -1
        microbatches[fits].append(length)
        room[fits] -= length
    return microbatches


def _even_counts(ranks: list[list[list[int]]]) -> Update:
    most = max(len(rank) for rank in ranks)
    return [rank + [[] for _ in range(most - len(rank))] for rank in ranks]
