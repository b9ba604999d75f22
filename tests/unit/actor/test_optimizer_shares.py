"""Boxes of a stretch: in order, without gap or overlap, and few."""

from itertools import product
from math import prod

import pytest
import torch

from megatron_nft.actor.optimizer_shares import boxes_of


def test_by_hand():
    assert list(boxes_of((4, 10), 3, 35)) == [((0, 3), (1, 7)), ((1, 0), (2, 10)), ((3, 0), (1, 5))]
    assert list(boxes_of((4, 10), 10, 30)) == [((1, 0), (2, 10))]
    assert list(boxes_of((4, 10), 12, 17)) == [((1, 2), (1, 5))]
    assert list(boxes_of((10,), 2, 7)) == [((2,), (5,))]
    assert list(boxes_of((), 0, 1)) == [((), ())]
    assert list(boxes_of((4, 10), 7, 7)) == []


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 6), (5, 1), (2, 1, 3)])
def test_any_stretch_is_its_boxes_end_to_end(shape):
    whole = torch.arange(prod(shape)).view(shape)
    for start, stop in product(range(prod(shape) + 1), repeat=2):
        boxes = list(boxes_of(shape, start, stop))
        parts = [whole[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))].flatten() for box in boxes]
        assert torch.cat([torch.empty(0, dtype=torch.int64), *parts]).tolist() == list(range(start, stop))
        assert len(boxes) <= 2 * len(shape) - 1
