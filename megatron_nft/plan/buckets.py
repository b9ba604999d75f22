"""Weight-sync buckets of a pipeline stage, as weights/plan.py cuts them: HF tensors, in order, up to a size.

A layer's experts stay together. The same rule without tensors, so that it needs no torch; tests/parallel/test_plan.py
compares the two.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from math import prod

from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.families.lora import Adapters, adapter_shapes, adapter_table
from megatron_nft.families.rules import ExpertRule, Rule
from megatron_nft.plan.parameters import chunk_rules, layers_of_chunk

AUTOMATIC_BUCKETS = 16
SMALLEST_BUCKET_BYTES, LARGEST_BUCKET_BYTES = 16 << 20, 512 << 20
"""As in weights/plan.py."""
TENSOR_ALIGNMENT = 64
"""Bytes at which a tensor of a bucket begins and its room ends, as weights/wire.py lays them out."""


def bucket_bytes(config: Config, hf: HFConfig, pp_rank: int) -> tuple[int, ...]:
    """Bytes of each bucket that this stage sends."""
    mib = config.weights.bucket_mib
    limit = (mib << 20) // config.actor.pp if mib else None
    actor, element = config.actor, 4 if config.rollout.dtype == "float32" else 2
    chunks = [layers_of_chunk(actor, hf.num_hidden_layers, pp_rank, stage) for stage in range(actor.vpp)]
    layers = tuple(layer for chunk in chunks for layer in chunk)
    if hf.mixture is None or not hf.mixture.dense_layers:  # all are alike: one answer for many stages
        layers = tuple(range(len(layers)))
    return _cut(hf, layers, actor.ep, pp_rank == 0, pp_rank == actor.pp - 1, element, limit, sent_adapters(config))


def sent_adapters(config: Config) -> Adapters | None:
    """What a sync sends in place of the model."""
    return config.lora.adapters if config.syncs_adapter else None


def largest_bucket_bytes(config: Config, hf: HFConfig, pp_rank: int) -> int:
    """Of the buffer that holds any of them."""
    return max(bucket_bytes(config, hf, pp_rank), default=0)


@lru_cache(maxsize=1024)
def _cut(
    hf: HFConfig,
    layers: tuple[int, ...],
    ep: int,
    is_first: bool,
    is_last: bool,
    element: int,
    limit: int | None,
    adapters: Adapters | None,
) -> tuple[int, ...]:
    rules = chunk_rules(hf, layers, first=is_first, last=is_last, ep=ep)
    if adapters is not None:
        rules = list(adapter_table(hf, adapters)) * len(layers)
    units = [[[element * n for n in tensors] for tensors in unit] for unit in _units(rules, ep)]
    sizes = [[_laid_out(tensors) for tensors in unit] for unit in units]
    if limit is None:
        whole = [sum(unit) for unit in sizes]
        limit = min(max(sum(whole) // AUTOMATIC_BUCKETS, SMALLEST_BUCKET_BYTES), LARGEST_BUCKET_BYTES)
        limit = max([limit, *whole])
    buckets: list[list[int]] = [[]]
    filled = 0
    for unit, of_parameters in zip(units, sizes, strict=True):
        needed = [sum(of_parameters), *of_parameters[1:]]
        for tensors, size, need in zip(unit, of_parameters, needed, strict=True):
            if buckets[-1] and filled + need > limit:
                buckets.append([])
                filled = 0
            buckets[-1] += tensors
            filled += size
    return tuple(_laid_out(tensors) for tensors in buckets if tensors)


def num_tensors(hf: HFConfig, adapters: Adapters | None = None) -> int:
    """HF tensors of the whole model, or of all adapters."""
    if adapters is not None:
        return len(adapter_shapes(hf, adapters))
    rules = chunk_rules(hf, range(hf.num_hidden_layers), first=True, last=True)
    return sum(len(rule.hf) for rule in rules)


def _units(rules: Sequence[Rule], ep: int) -> list[list[list[int]]]:
    """Per Megatron parameter, in order: elements of each HF tensor that it makes. A layer's experts are one unit."""
    units: list[list[list[int]]] = []
    for is_expert, group in groupby(rules, lambda rule: isinstance(rule, ExpertRule)):
        made = [_elements(rule) * (ep if is_expert else 1) for rule in group]
        units += [made] if is_expert else [[tensors] for tensors in made]
    return units


def _elements(rule: Rule) -> list[int]:
    return [prod(shape) for shape in rule.hf_shapes({"layer": 0, "slot": 0}).values()]


def _laid_out(sizes: list[int]) -> int:
    end = 0
    for size in sizes:
        end += -(-size // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
    return end
