"""Tensors by the rules of families/rules.py: one rank's shard out of HF tensors, and a shard's places in them.

Used in both directions: `to_shard` for loading (actor/hf_weights.py, checkpoint_tools), `parts` for weight sync and
export (weights/gather.py, checkpoint_tools). No number is changed or computed with. Knows no Megatron and no process
groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_nft.families.rules import Numbers, Place, Rule


@dataclass(frozen=True)
class Part:
    """A piece of one rank's shard, and its place in an HF tensor."""

    name: str
    where: tuple[slice, ...]  # the piece's place in that tensor
    piece: Tensor  # a view of the shard; its axes may be finer than the HF tensor's, in the same order

    def copy_to(self, tensor: Tensor) -> None:
        """Writes the piece into its place in the HF tensor, cast to that tensor's dtype."""
        place = tensor[self.where]
        (place if place.shape == self.piece.shape else place.view(self.piece.shape)).copy_(self.piece)


def parts(rule: Rule, numbers: Numbers, shard: Tensor, place: Place) -> list[Part]:
    """Where a shard lies in HF tensors. The parts of all ranks, each shard once, fill the tensors, each place once.

    Args:
        numbers: in the parameter's name.
        place: of the rank that has the shard.
    """
    layout = rule.layout
    rank, size = layout.share(place)
    if layout.dim == 1:
        ((name, _),) = rule.pieces(numbers, place)
        width = shard.shape[1]
        return [Part(name, (slice(None), slice(rank * width, (rank + 1) * width)), shard)]
    if layout.is_vocabulary:
        ((name, _),) = rule.pieces(numbers, place)
        first = min(rank * len(shard), layout.rows[0])
        end = min(first + len(shard), layout.rows[0])  # beyond it there is padding
        return [Part(name, (slice(first, end),), shard[: end - first])]
    shares = [rows // size for rows in layout.rows]
    groups = layout.groups // size if layout.groups else 1
    pieces = shard.view(groups, -1, *shard.shape[1:]).split([share // groups for share in shares], dim=1)
    return [
        Part(name, (slice(first + rank * share, first + (rank + 1) * share),), piece)
        for (name, first), share, piece in zip(rule.pieces(numbers, place), shares, pieces, strict=True)
    ]


def to_shard(rule: Rule, tensors: Sequence[Tensor], place: Place) -> Tensor:
    """The inverse: what the rank at `place` has.

    Args:
        tensors: HF tensors of the rule's shapes, in its order.
    """
    layout = rule.layout
    rank, size = layout.share(place)
    if layout.dim == 1:
        return tensors[0].chunk(size, dim=1)[rank]
    if layout.is_vocabulary:
        (table,) = tensors
        padding = layout.shard_shape(place)[0] * size - len(table)
        return torch.cat([table, table.new_zeros(padding, *table.shape[1:])]).chunk(size)[rank]
    if layout.axis is None:
        return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
    pieces = tensors if len(tensors) == len(layout.rows) else tensors[0].split(layout.rows)
    groups = layout.groups or size
    mine = [piece.view(groups, -1, *piece.shape[1:]).chunk(size)[rank] for piece in pieces]
    return torch.cat(mine, dim=1).flatten(0, 1)
