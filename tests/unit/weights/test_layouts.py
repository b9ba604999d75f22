"""Layouts are two-way: HF -> shards -> HF is the identity, and shards lie as Megatron wants them."""

from dataclasses import replace

import pytest
import torch

from megatron_nft.families.registry import table_of
from megatron_nft.families.rules import Rule, along, rows
from megatron_nft.weights.layouts import parts, to_shard
from tests.unit.families.test_rules import HF

QKV, GATE_UP = rows(16, 8, 8, of=(16,), groups=4), rows(24, 24, of=(16,))
RULES = [
    *table_of(replace(HF, qk_norm=True)),
    Rule("fused qkv, as Phi has it", ("self_attn.qkv_proj.weight",), QKV),
    Rule("bias of a fused qkv", ("self_attn.qkv_proj.bias",), rows(16, 8, 8, groups=4)),
    Rule("fused gate and up, as Phi has it", ("mlp.gate_up_proj.weight",), GATE_UP),
]


def hf_tensors(rule):
    return {name: torch.randn(shape) for name, shape in rule.hf_shapes({"layer": 1}).items()}


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.megatron)
def test_round_trip_is_bitwise(rule, tp):
    tensors, places = hf_tensors(rule), along("tp", tp)
    shards = [to_shard(rule, list(tensors.values()), place) for place in places]
    assert [tuple(shard.shape) for shard in shards] == [rule.layout.shard_shape(place) for place in places]
    back = joined(rule, shards, places)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def joined(rule, shards, places):
    """HF tensors of the parts of all owners; a place that none fills stays NaN."""
    back = {name: torch.full(shape, torch.nan) for name, shape in rule.hf_shapes({"layer": 1}).items()}
    for shard, place in zip(shards, places, strict=True):
        if rule.is_owned_at(place):
            for part in parts(rule, {"layer": 1}, shard, place):
                assert back[part.name][part.where].isnan().all(), "filled twice"
                part.copy_to(back[part.name])
    return back


@pytest.mark.parametrize("is_fused", [False, True])
def test_qkv_lies_group_by_group(is_fused):
    names = ("qkv",) if is_fused else ("q", "k", "v")
    rule = Rule("decoder.layers.0.self_attention.linear_qkv.bias", names, rows(16, 8, 8, groups=4))
    tensors = [torch.arange(16.0), 100 + torch.arange(8.0), 200 + torch.arange(8.0)]
    shard = to_shard(rule, [torch.cat(tensors)] if is_fused else tensors, along("tp", 4)[1])
    assert shard.tolist() == [4, 5, 6, 7, 102, 103, 202, 203], "the second of four ranks has group 1: heads 2 and 3"


@pytest.mark.parametrize("is_fused", [False, True])
def test_gate_and_up_lie_one_after_the_other_on_each_rank(is_fused):
    names = ("both",) if is_fused else ("gate", "up")
    rule = Rule("decoder.layers.0.mlp.linear_fc1.weight", names, rows(24, 24, of=(1,)))
    tensors = [torch.arange(24.0)[:, None], 100 + torch.arange(24.0)[:, None]]
    shard = to_shard(rule, [torch.cat(tensors)] if is_fused else tensors, along("tp", 2)[1])
    assert shard[:, 0].tolist() == [*range(12, 24), *range(112, 124)]


def test_vocabulary_is_padded_and_cut_again():
    rule, _ = table_of(HF).find("embedding.word_embeddings.weight")
    table = torch.randn(300, 16)
    last = to_shard(rule, [table], along("tp", 2)[1])
    assert last.shape == (192, 16) and torch.equal(last[108:], torch.zeros(84, 16))
