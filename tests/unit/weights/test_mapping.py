"""The mapping table is two-way: HF -> shards -> HF is the identity, and shards lie as Megatron wants them."""

from dataclasses import replace

import pytest
import torch

from megatron_nft.families.hf_config import HFConfig
from megatron_nft.weights.mapping import TABLES, MappingError, find_rule, padded_vocab_size

HF = HFConfig(
    model_type="qwen2", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, head_dim=2, vocab_size=300, max_position_embeddings=64, rms_norm_eps=1e-6, rope_theta=1e4,
    tie_word_embeddings=False, qkv_bias=True,
)  # fmt: skip

SHAPES = {
    "embed_tokens.weight": (300, 16), "lm_head.weight": (300, 16), "norm.weight": (16,),
    "q_proj.weight": (16, 16), "k_proj.weight": (8, 16), "v_proj.weight": (8, 16),
    "q_proj.bias": (16,), "k_proj.bias": (8,), "v_proj.bias": (8,), "o_proj.weight": (16, 16),
    "gate_proj.weight": (24, 16), "up_proj.weight": (24, 16), "down_proj.weight": (16, 24),
    "input_layernorm.weight": (16,), "post_attention_layernorm.weight": (16,),
}  # fmt: skip


def hf_tensors(rule):
    shapes = [next(s for end, s in SHAPES.items() if name.endswith(end)) for name in rule.hf]
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("rule", TABLES["qwen2"].values(), ids=lambda rule: rule.megatron)
def test_round_trip_is_bitwise(rule, tp):
    tensors = hf_tensors(rule)
    shards = [rule.layout.to_shard(tensors, rank, tp, HF) for rank in range(tp)]
    assert len({shard.shape for shard in shards}) == 1
    assert all(torch.equal(a, b) for a, b in zip(tensors, joined(rule, shards), strict=True))


def joined(rule, shards):
    """HF tensors of all parts; a place that none fills stays NaN."""
    shards = shards if rule.layout.is_sharded else shards[:1]
    parts = [rule.layout.parts(shard, rank, len(shards), HF) for rank, shard in enumerate(shards)]
    back = [torch.full(part.shape, torch.nan) for part in parts[0]]
    for of_rank in parts:
        for tensor, part in zip(back, of_rank, strict=True):
            assert part.shape == tuple(tensor.shape) and tensor[part.where].isnan().all(), "filled twice"
            part.copy_to(tensor)
    return back


def test_qkv_lies_group_by_group():
    rule, _ = find_rule("decoder.layers.0.self_attention.linear_qkv.bias", HF)
    q, k, v = torch.arange(16.0), 100 + torch.arange(8.0), 200 + torch.arange(8.0)
    shard = rule.layout.to_shard([q, k, v], 1, 4, HF)  # the second of four ranks has group 1: heads 2 and 3
    assert shard.tolist() == [4, 5, 6, 7, 102, 103, 202, 203]


def test_gate_and_up_lie_one_after_the_other_on_each_rank():
    rule, _ = find_rule("decoder.layers.0.mlp.linear_fc1.weight", HF)
    gate, up = torch.arange(24.0)[:, None], 100 + torch.arange(24.0)[:, None]
    assert rule.layout.to_shard([gate, up], 1, 2, HF)[:, 0].tolist() == [*range(12, 24), *range(112, 124)]


def test_vocabulary_is_padded_and_cut_again():
    assert padded_vocab_size(300, 2) == 384 and padded_vocab_size(256, 4) == 256
    rule, _ = find_rule("embedding.word_embeddings.weight", HF)
    table = torch.randn(300, 16)
    last = rule.layout.to_shard([table], 1, 2, HF)
    assert last.shape == (192, 16) and torch.equal(last[108:], torch.zeros(84, 16))


def test_layer_number_comes_back_and_unknown_names_are_refused():
    rule, layer = find_rule("decoder.layers.17.mlp.linear_fc2.weight", HF)
    assert rule.hf_names(layer) == ["model.layers.17.mlp.down_proj.weight"]
    with pytest.raises(MappingError, match=r"decoder\.layers\.3\.mlp\.router"):
        find_rule("decoder.layers.3.mlp.router.weight", HF)


def test_llama_is_qwen2_without_the_bias():
    assert TABLES["qwen2"].keys() - TABLES["llama"].keys() == {"decoder.layers.{layer}.self_attention.linear_qkv.bias"}
    assert all(TABLES["qwen2"][name] is rule for name, rule in TABLES["llama"].items())
    llama = replace(HF, model_type="llama", qkv_bias=False)
    rule, layer = find_rule("decoder.layers.1.self_attention.linear_qkv.weight", llama)
    assert rule.hf_names(layer)[0] == "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(MappingError, match="in the table of 'llama'"):
        find_rule("decoder.layers.1.self_attention.linear_qkv.bias", llama)
