"""Buckets: all parameters once, in order, none larger than asked for unless it holds one parameter alone."""

from dataclasses import replace

import pytest
import torch

from megatron_nft.families.family import Mixture
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


def test_the_experts_of_a_layer_lie_in_one_bucket_if_they_fit():
    """An engine that has some of them holds these until the others come, beside the layer that it makes of all."""
    mixture = Mixture(num_experts=4, experts_per_token=2, intermediate_size=8, normalizes_weights=True)
    names = [f"experts.local_experts.{slot}.linear_fc{number}" for slot in range(4) for number in (1, 2)]
    shapes = {"router": (4, 16), **{name: (16, 16) if name.endswith("1") else (16, 8) for name in names}}
    parameters = [
        (f"decoder.layers.{layer}.mlp.{name}.weight", torch.zeros(shape))
        for layer in range(2) for name, shape in shapes.items()
    ]  # fmt: skip
    hf = replace(HF, model_type="qwen3_moe", mixture=mixture)
    one_expert, router = 2 * (2 * 8 * 16 + 16 * 8), 2 * 4 * 16  # bytes in bf16

    def layers_of(bucket_bytes):
        plan = plan_weights(parameters, table_of(hf), places=[()], dtype=torch.bfloat16, bucket_bytes=bucket_bytes)
        return [[s.numbers["layer"] for s in bucket.shards if "experts" in s.name] for bucket in plan.buckets]

    assert layers_of(4 * one_expert + router) == [[0] * 8, [1] * 8]
    assert layers_of(6 * one_expert) == [[0] * 8, [1] * 8], "not two of the second layer's beside the first's"
    assert layers_of(4 * one_expert) == [[], [0] * 8, [], [1] * 8]
    assert max(map(len, layers_of(one_expert))) == 2, "where they don't fit, tensor by tensor"
