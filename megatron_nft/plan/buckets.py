"""Weight-sync buckets of a pipeline stage, as weights/plan.py cuts them: HF tensors, in order, up to a size.

The same rule without tensors, so that it needs no torch; tests/parallel/test_plan.py compares the two.
"""

from functools import lru_cache
from math import prod

from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.plan.parameters import chunk_rules, layers_of_rank

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
    layers = layers_of_rank(actor, hf.num_hidden_layers, pp_rank)
    return _cut(hf, layers, pp_rank == 0, pp_rank == actor.pp - 1, element, limit)


def largest_bucket_bytes(config: Config, hf: HFConfig, pp_rank: int) -> int:
    """Of the buffer that holds any of them."""
    return max(bucket_bytes(config, hf, pp_rank), default=0)


@lru_cache(maxsize=1024)
def _cut(hf: HFConfig, layers: int, is_first: bool, is_last: bool, element: int, limit: int | None) -> tuple[int, ...]:
    parameters = [[element * n for n in tensors] for tensors in _hf_tensors(hf, layers, is_first, is_last)]
    if limit is None:
        sizes = [_laid_out(tensors) for tensors in parameters]
        limit = min(max(sum(sizes) // AUTOMATIC_BUCKETS, SMALLEST_BUCKET_BYTES), LARGEST_BUCKET_BYTES)
        limit = max([limit, *sizes])
    buckets: list[list[int]] = [[]]
    filled = 0
    for tensors in parameters:
        size = _laid_out(tensors)
        if buckets[-1] and filled + size > limit:
            buckets.append([])
            filled = 0
        buckets[-1] += tensors
        filled += size
    return tuple(_laid_out(tensors) for tensors in buckets if tensors)


def num_tensors(hf: HFConfig) -> int:
    """HF tensors of the whole model."""
    return sum(len(rule.hf) for rule in chunk_rules(hf, hf.num_hidden_layers, first=True, last=True))


def _hf_tensors(hf: HFConfig, layers: int, is_first: bool, is_last: bool) -> list[list[int]]:
    """Per Megatron parameter, in order: elements of each HF tensor that it makes."""
    rules = chunk_rules(hf, layers, first=is_first, last=is_last)
    return [[prod(shape) for shape in rule.hf_shapes({"layer": 0}).values()] for rule in rules]


def _laid_out(sizes: list[int]) -> int:
    end = 0
    for size in sizes:
        end += -(-size // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
    return end
