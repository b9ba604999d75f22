"""Groups -> token-budgeted microbatches, balanced over data-parallel ranks.

TrainSequences of a step come in, group by group; a TrainBatch goes out, whose every update has the same number of
microbatches on every rank. Deterministic: the same groups give the same batch. Called by train.py.
"""

from collections.abc import Sequence

from megatron_nft.types import MicroBatch, TrainBatch, TrainSequence


def pack(
    groups: Sequence[Sequence[TrainSequence]], *, num_updates: int, dp: int, tokens_per_microbatch: int
) -> TrainBatch:
    """Splits groups evenly into updates, an update's sequences over ranks, a rank's into microbatches.

    Args:
        groups: the sequences of each group; a multiple of `num_updates` of them.
        tokens_per_microbatch: budget of a microbatch; a single longer sequence gets one of its own.

    Raises:
        ValueError: the groups do not divide into `num_updates` equal parts.
    """
    if not groups or len(groups) % num_updates:
        raise ValueError(f"{len(groups)} groups do not split into {num_updates} equal updates")
    size = len(groups) // num_updates
    return TrainBatch(
        updates=tuple(
            _pack_update([s for group in groups[i : i + size] for s in group], dp, tokens_per_microbatch)
            for i in range(0, len(groups), size)
        )
    )


def _pack_update(sequences: list[TrainSequence], dp: int, budget: int) -> tuple[tuple[MicroBatch, ...], ...]:
    ranks = [_fill(share, budget) for share in _spread(sequences, dp)]
    most = max(len(rank) for rank in ranks)
    return tuple(tuple(rank + [MicroBatch(sequences=())] * (most - len(rank))) for rank in ranks)


def _spread(sequences: list[TrainSequence], num_ranks: int) -> list[list[TrainSequence]]:
    """Longest first, each to the rank with the fewest tokens so far."""
    shares: list[list[TrainSequence]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for sequence in sorted(sequences, key=lambda s: -s.num_tokens):
        lightest = loads.index(min(loads))
        shares[lightest].append(sequence)
        loads[lightest] += sequence.num_tokens
    return shares


def _fill(sequences: list[TrainSequence], budget: int) -> list[MicroBatch]:
    """First-fit decreasing: each sequence into the first microbatch that has room."""
    bins: list[list[TrainSequence]] = []
    room: list[int] = []
    for sequence in sequences:
        fits = next((i for i, free in enumerate(room) if free >= sequence.num_tokens), None)
        if fits is None:
            bins.append([])
            room.append(budget)
            fits = -1
        bins[fits].append(sequence)
        room[fits] -= sequence.num_tokens
    return [MicroBatch(sequences=tuple(members)) for members in bins]
