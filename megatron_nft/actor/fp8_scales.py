"""The scales of delayed scaling in a checkpoint, as plain tensors.

TransformerEngine pickles them into a layer's extra state and then refuses its own pickle, unless told to trust every
pickle. Other recipes have no state. Here `plain` takes the pickle's place in what Megatron saves and loads, and
`set_scales` gives the tensors back to their layers. Called by actor/checkpoint.py.
"""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.fp8_utils import get_fp8_recipe
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

EXTRA_STATE = "_extra_state"
DIRECTIONS, KINDS = ("scaling_fwd", "scaling_bwd"), ("scale", "amax_history")
"""TransformerEngine's names: for the forward and the backward pass, a scale and the largest numbers seen before."""
TENSORS_OF_A_PRODUCT = 2
"""Of its backward pass: for so many there are scales."""


def is_extra_state(name: str) -> bool:
    """Whether it is a layer's extra state; grouped experts have one a slot, of which the others are numbered."""
    return name.rpartition(".")[2].startswith(EXTRA_STATE)


def plain(chunk: MegatronModule, state: dict[str, Any]) -> dict[str, Any]:
    """A chunk's sharded state, to be saved or loaded, with tensors by name where a layer has pickled its scales.

    Grouped experts have none, since mixtures have no FP8 here: what a checkpoint has of them is what a CPU's has.
    """
    changed = dict(state)
    for name, layer in _layers(chunk):
        if hasattr(layer, "num_gemms"):
            changed = {key: v for key, v in changed.items() if not key.startswith(f"{name}.{EXTRA_STATE}")}
            continue
        if isinstance(entry := state.get(f"{name}.{EXTRA_STATE}"), ShardedObject):
            changed[f"{name}.{EXTRA_STATE}"] = ShardedObject(
                entry.key, _scales(layer), entry.global_shape, entry.global_offset, entry.replica_id
            )
    return changed


def set_scales(chunk: MegatronModule, state: dict[str, Any]) -> dict[str, Any]:
    """Hands loaded scales to the layers of a chunk that is to go on in delayed scaling; the state without them.

    Other chunks have no use for them, and where the checkpoint has none (it was trained in another format) the layers
    begin with scales of 1, as a new run's do.
    """
    changed = dict(state)
    for name, layer in _layers(chunk):
        scales = changed.pop(f"{name}.{EXTRA_STATE}", None)
        changed[f"{name}.{EXTRA_STATE}"] = None
        if scales and chunk.config.fp8_recipe == "delayed" and chunk.config.fp8:
            _set(layer, scales, get_fp8_recipe(chunk.config))
    return changed


def _layers(chunk: nn.Module) -> Iterator[tuple[str, Any]]:
    """TransformerEngine's that can have scales."""
    return ((name, module) for name, module in chunk.named_modules() if hasattr(module, "fp8_meta"))


def _scales(layer: Any) -> dict[str, Tensor]:
    """Copies on the host; empty where the layer has none."""
    states = {key: layer.fp8_meta[key] for key in DIRECTIONS if hasattr(layer.fp8_meta.get(key), "amax_history")}
    return {
        f"{key}.{kind}": getattr(state, kind).detach().to("cpu", copy=True)
        for key, state in states.items()
        for kind in KINDS
    }


def _set(layer: Any, scales: dict[str, Tensor], recipe: Any) -> None:
    """As the layer's own set_extra_state does."""
    layer.fp8_meta["recipe"] = recipe
    layer.fp8_meta["num_gemms"] = len(scales["scaling_bwd.scale"]) // TENSORS_OF_A_PRODUCT
    layer.init_fp8_meta_tensors(recipe)
    with torch.no_grad():
        for name, tensor in scales.items():
            key, _, kind = name.partition(".")
            getattr(layer.fp8_meta[key], kind).copy_(tensor)
