"""The optimizer's state in a checkpoint: every rank writes and reads what it holds, and any layout can read it.

Megatron's distributed optimizer lays all parameters end to end and gives each data-parallel rank a stretch. In the
checkpoint master weights and moments have their parameter's shape, as tensors of the whole model; a stretch of a
parameter is cut into boxes of that shape, at most three for a matrix (part of a row, rows, part of a row), which
torch.distributed.checkpoint stores and reads as they are. Nothing is gathered: "fully_reshardable", Megatron's own way
to the same tensors, holds all ranks' stretches on each of them. Its other way without gathering,
"fully_sharded_model_space", asks for ranges that its format no longer knows; this takes that one's place, and what it
writes is read as "fully_reshardable". Adapted to megatron-core 0.16.1 and 0.19.2. Called by checkpoint.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

SAVED_AS = "fully_reshardable"
"""Megatron's name of what is in the file."""
READ_AS = "fully_sharded_model_space"
"""Megatron's name of what a rank has in memory: its stretches, parameter by parameter."""
STATES = ("param", "exp_avg", "exp_avg_sq")
KIND, STRETCHES = "param_state_sharding_type", "param_state"
Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset, sizes


def optimizer_state(optimizer: MegatronOptimizer, weights: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
    """What a checkpoint holds of the optimizer, for dist_checkpointing.

    Args:
        weights: the model's sharded state.
    """
    DistributedOptimizer.sharded_param_state_fs_model_space = _stretches
    metadata = {"distrib_optim_sharding_type": READ_AS}
    parts = [part.sharded_state_dict(weights, is_loading, metadata=metadata) for part in optimizer.chained_optimizers]
    stretches = {number: part[STRETCHES] for number, part in enumerate(parts)}
    return parts[0] | {STRETCHES: stretches, KIND: SAVED_AS}


def load_optimizer_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Takes what was read from a checkpoint by `optimizer_state`'s description.

    With expert parallelism there is a second optimizer, the experts'. A checkpoint has one, with the tensors of both.
    """
    (updates,) = {group["step"] for group in state["optimizer"]["param_groups"] if "step" in group} or {None}
    for number, part in enumerate(optimizer.chained_optimizers):
        own = state
        if number > 0:  # its settings are the recipe's, as the first one's are by now
            own = part.state_dict()
            if updates is not None:
                for group in own["optimizer"]["param_groups"]:
                    group["step"] = updates
        part.load_state_dict(own | {STRETCHES: state[STRETCHES].get(number, {}), KIND: READ_AS})


def boxes_of(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Numbers `start` to `stop` of a tensor laid out flat, as boxes of it, in order."""
    if start >= stop:
        return
    if len(shape) < 2:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row, rest = prod(shape[1:]), shape[1:]
    first, last = -(-start // row), stop // row  # whole rows
    if first > last:  # within one
        yield from _in_row(last, boxes_of(rest, start - last * row, stop - last * row))
        return
    yield from _in_row(first - 1, boxes_of(rest, start - (first - 1) * row, row)) if start % row else ()
    if first < last:
        yield (first, *[0] * len(rest)), (last - first, *rest)
    yield from _in_row(last, boxes_of(rest, 0, stop - last * row))


def _in_row(row: int, boxes: Iterator[Box]) -> Iterator[Box]:
    for offset, sizes in boxes:
        yield (row, *offset), (1, *sizes)


def _stretches(
    self: DistributedOptimizer, weights: dict[str, Any], is_loading: bool = False, metadata: dict | None = None
) -> dict[int, dict[str, ShardedTensorFactory]]:
    """A method of DistributedOptimizer: number of a parameter that this rank has a stretch of -> its state."""
    tensors, _ = extract_sharded_tensors_and_factories(weights)
    of_parameter = {tensor.data: tensor for tensor in nested_values(tensors)}
    stretches = [
        (parameter, ranges["param"].start, ranges["param"].end)
        for of_dtype in self.gbuf_ranges
        for buckets in of_dtype.values()
        for bucket in buckets
        for parameter, ranges in bucket["param_map"].items()
    ]
    found = {}
    for number, (parameter, start, stop) in enumerate(stretches):
        states = self._get_main_param_and_optimizer_states(parameter)
        whole = of_parameter[parameter]
        found[number] = {
            name: ShardedTensorFactory(
                f"optimizer.state.{name}.{whole.key}",
                states[name],
                _build(whole, start, stop),
                lambda boxes: torch.cat([box.flatten() for box in boxes]),
                # No two data-parallel ranks hold the same stretch.
                (*whole.replica_id[:2], self.distributed_optimizer_instance_id),
            )
            for name in STATES
        }
    return found


def _build(whole: ShardedTensor | ShardedTensorFactory, start: int, stop: int) -> Callable[..., list[ShardedTensor]]:
    """Of numbers `start` to `stop` of a parameter, which a factory may store in several parts (gate and up rows)."""

    def build(key: str, stretch: Tensor, replica_id: Any, flattened_range: None) -> list[ShardedTensor]:
        plan = torch.empty(whole.data.shape, device="meta")  # where in the parameter a part lies, without its numbers
        if isinstance(whole, ShardedTensor):
            parts = [replace(whole, key=key, data=plan, dtype=plan.dtype)]
        else:
            parts = list(nested_values(replace(whole, key=key, data=plan).build()))
        built = []
        for part in parts:
            assert part.data.is_contiguous(), f"{key}: a part that is no stretch of its parameter"
            first, count = part.data.storage_offset(), part.data.numel()
            boxes = boxes_of(tuple(part.local_shape), max(start - first, 0), min(stop - first, count))
            built += [_box(part, box, stretch, replica_id, first - start) for box in boxes]
        return sorted(built, key=lambda box: box.data.storage_offset())

    return build


def _box(part: ShardedTensor, box: Box, stretch: Tensor, replica_id: Any, shift: int) -> ShardedTensor:
    """A box as a tensor of its own, whose numbers are the stretch's.

    Args:
        shift: of the part's first number, from the stretch's.
    """
    offset, sizes = box
    at = shift
    for index, row in zip(offset, part.data.stride(), strict=True):
        at += index * row
    layers = (1,) * part.prepend_axis_num
    shape = (*layers, *sizes)
    within = (*[0] * part.prepend_axis_num, *offset)
    return replace(
        part,
        data=stretch[at : at + prod(sizes)].view(shape),
        dtype=stretch.dtype,
        local_shape=shape,
        global_offset=tuple(a + b for a, b in zip(part.global_offset, within, strict=True)),
        axis_fragmentations=None,  # no regular grid
        prepend_axis_num=0,
        replica_id=replica_id,
    )
