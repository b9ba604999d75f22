"""Buckets: all parameters once, in order, none larger than asked for unless it holds one parameter alone."""

from dataclasses import replace

import pytest
import torch

from megatron_nft.families.registry import table_of
from megatron_nft.families.rules import along
from megatron_nft.weights.plan import LARGEST_BUCKET_BYTES, SMALLEST_BUCKET_BYTES, plan_weights
from tests.unit.families.test_rules import HF

LAYER = "decoder.layers.{}.self_attention.linear_qkv.{}"
PARAMETERS = [
    ("embedding.word_embeddings.weight", torch.zeros(192, 16)),  # tp 2: 300 rows, padded
    *((LAYER.format(layer, kind), torch.zeros(shape)) for layer in range(4)
      for kind, shape in (("weight", (16, 16)), ("bias", (16,)))),
    ("decoder.final_layernorm.weight", torch.zeros(16)),
]  # fmt: skip


def plan(bucket_bytes, parameters=PARAMETERS, hf=HF):
    return plan_weights(
        parameters, table_of(hf), places=along("tp", 2), dtype=torch.bfloat16, bucket_bytes=bucket_bytes
    )


@pytest.mark.parametrize("bucket_bytes", [1, 1000, 2500, 1 << 20])
def test_every_parameter_is_in_one_bucket_within_the_size(bucket_bytes):
    buckets = plan(bucket_bytes).buckets
    assert [shard.name for bucket in buckets for shard in bucket.shards] == [name for name, _ in PARAMETERS]
    assert all(bucket.num_bytes <= bucket_bytes or len(bucket.shards) == 1 for bucket in buckets)
    assert len(buckets) == {1: 10, 1000: 9, 2500: 3, 1 << 20: 1}[bucket_bytes]


def test_a_bucket_lists_whole_hf_tensors_without_padding():
    tensors = plan(1 << 20).buckets[0].tensors
    assert tensors["model.embed_tokens.weight"].shape == (300, 16)
    assert tensors["model.layers.3.self_attn.q_proj.weight"].shape == (16, 16)
    assert tensors["model.layers.3.self_attn.v_proj.bias"].shape == (8,)
    ends = [spec.offset + spec.num_bytes for spec in tensors.values()]
    assert all(spec.offset >= end for spec, end in zip(list(tensors.values())[1:], ends, strict=False))


def test_automatic_size_is_a_16th_within_bounds():
    assert len(plan(None).buckets) == 1  # far below the smallest
    wide, wider = replace(HF, hidden_size=1 << 24), replace(HF, hidden_size=1 << 30)
    many = [(f"decoder.layers.{i}.input_layernorm.weight", torch.empty(1 << 24, device="meta")) for i in range(64)]
    sizes = [bucket.num_bytes for bucket in plan(None, many, wide).buckets]
    assert sizes == [SMALLEST_BUCKET_BYTES * 8] * 16
    assert plan(None, [(name, tensor.repeat(64)) for name, tensor in many], wider).largest_bucket_bytes == max(
        LARGEST_BUCKET_BYTES, 2 << 30
    )
