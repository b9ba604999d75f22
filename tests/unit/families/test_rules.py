"""A table's lines: names with numbers in them, shapes, and which rank owns a parameter. No tensors."""

from dataclasses import replace

import pytest

from megatron_nft.families.family import Mixture, ModelFolderError
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.families.registry import families, family_of, table_of
from megatron_nft.families.rules import (
    AxisPlace,
    ExpertRule,
    MappingError,
    Rule,
    along,
    columns,
    padded_vocab_size,
    rows,
    vocabulary,
    whole,
)
from megatron_nft.families.serving import check_served
from tests.variants import MIXTURES

HF = HFConfig(
    model_type="qwen2", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, head_dim=2, vocab_size=300, max_position_embeddings=64, rms_norm_eps=1e-6, rope_theta=1e4,
    tie_word_embeddings=False, qkv_bias=True,
)  # fmt: skip


MIXTURE = Mixture(num_experts=8, experts_per_token=2, intermediate_size=12, normalizes_weights=True)


def names(hf):
    return {rule.megatron for rule in table_of(hf)}


def test_numbers_come_back_and_unknown_names_are_refused():
    rule, numbers = table_of(HF).find("decoder.layers.17.mlp.linear_fc2.weight")
    assert rule.hf_shapes(numbers) == {"model.layers.17.mlp.down_proj.weight": (16, 24)}
    with pytest.raises(MappingError, match=r"decoder\.layers\.3\.mlp\.router"):
        table_of(HF).find("decoder.layers.3.mlp.router.weight")


def test_llama_is_qwen2_without_the_bias():
    llama = replace(HF, model_type="llama", qkv_bias=False)
    assert names(HF) - names(llama) == {"decoder.layers.{layer}.self_attention.linear_qkv.bias"}
    assert set(table_of(llama)) < set(table_of(HF))
    rule, numbers = table_of(llama).find("decoder.layers.1.self_attention.linear_qkv.weight")
    assert next(iter(rule.hf_shapes(numbers))) == "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(MappingError, match="in the table of 'llama'"):
        table_of(llama).find("decoder.layers.1.self_attention.linear_qkv.bias")


def test_a_tied_model_has_no_output_layer():
    assert names(HF) - names(replace(HF, tie_word_embeddings=True)) == {"output_layer.weight"}


def test_the_vocabulary_is_padded_to_whole_tiles_on_each_rank():
    assert padded_vocab_size(300, 2) == 384 and padded_vocab_size(256, 4) == 256
    assert padded_vocab_size(152_065, 1) == 152_128 and padded_vocab_size(152_065, 8) == 152_576


def test_shapes_of_shards():
    second_of_two = along("tp", 2)[1]
    assert vocabulary(300, 16).shard_shape(second_of_two) == (192, 16)
    assert rows(16, 8, 8, of=(16,), groups=4).shard_shape(second_of_two) == (16, 16)
    assert rows(16, 8, 8, groups=4).shard_shape(second_of_two) == (16,)
    assert columns(16, 24).shard_shape(second_of_two) == (16, 12)
    assert whole(16).shard_shape(second_of_two) == (16,)


def test_a_fused_hf_tensor_has_its_pieces_one_after_the_other():
    rule = Rule("decoder.layers.{layer}.qkv", ("layers.{layer}.qkv_proj",), rows(16, 8, 8, of=(5,), groups=4))
    assert rule.pieces({"layer": 3}) == [("layers.3.qkv_proj", first) for first in (0, 16, 24)]
    assert rule.hf_shapes({"layer": 3}) == {"layers.3.qkv_proj": (32, 5)}
    with pytest.raises(AssertionError, match="one HF tensor, or one for each piece"):
        replace(rule, hf=("layers.{layer}.qk_proj", "layers.{layer}.v_proj"))


def place(**ranks):
    return tuple(AxisPlace(axis, rank, 2) for axis, rank in ranks.items())


def test_the_owner_has_coordinate_0_wherever_the_parameter_is_not_sharded():
    matrix, norm = Rule("a", ("a",), columns(4, 4)), Rule("b", ("b",), whole(4))
    owners = [
        (tp, cp, dp)
        for tp in range(2) for cp in range(2) for dp in range(2)
        if matrix.is_owned_at(place(tp=tp, cp=cp, dp=dp))
    ]  # fmt: skip
    assert owners == [(0, 0, 0), (1, 0, 0)]
    assert norm.is_owned_at(place(tp=0, cp=0, dp=0)) and not norm.is_owned_at(place(tp=1, cp=0, dp=0))
    assert norm.is_owned_at(()), "one rank"


def test_an_experts_owner_is_by_its_own_grid():
    expert = ExpertRule("e{slot}", ("e{expert}",), columns(4, 4, axis="etp"), num_experts=8)
    assert expert.is_owned_at(place(tp=1, cp=1, dp=1, etp=1, ep=1, edp=0))
    assert not expert.is_owned_at(place(tp=0, cp=0, dp=0, etp=0, ep=0, edp=1))
    assert expert.hf_shapes({"slot": 1}, place(ep=1)) == {"e5": (4, 4)}, "of 8 experts the second rank has 4 to 7"


def test_a_layer_has_experts_or_an_mlp():
    some = table_of(replace(HF, model_type="qwen3_moe", mixture=replace(MIXTURE, dense_layers=(0,))))
    some.find("decoder.layers.0.mlp.linear_fc1.weight")
    rule, numbers = some.find("decoder.layers.1.mlp.experts.linear_fc1.weight3")
    assert numbers == {"layer": 1, "slot": 3} and rule.key.endswith(".mlp.experts.experts.linear_fc1.weight")
    for stranger in ("decoder.layers.1.mlp.linear_fc1.weight", "decoder.layers.0.mlp.router.weight"):
        with pytest.raises(MappingError):
            some.find(stranger)


def test_experts_that_a_cpus_engine_has_no_kernel_for():
    hf = replace(HF, model_type="qwen3_moe", head_dim=32, hidden_size=144, mixture=MIXTURE)
    with pytest.raises(
        ModelFolderError, match=r"no kernel for experts of hidden_size = 144; it must be a multiple of 32"
    ):
        check_served(hf, "folder", max_tokens=64, device="cpu")
    check_served(hf, "folder", max_tokens=64, device="cuda")
    check_served(replace(hf, hidden_size=160), "folder", max_tokens=64, device="cpu")


def test_what_a_token_goes_through_is_less_than_what_a_mixture_holds():
    hf = replace(HF, model_type="qwen3_moe", mixture=MIXTURE)
    attention, expert, router = 16 * 2 * 2 * (8 + 4), 3 * 16 * 12, 16 * 8
    assert hf.layer_parameters == attention + 2 * expert + router
    assert hf.stored_layer_parameters == attention + 8 * expert + router
    assert HF.layer_parameters == HF.stored_layer_parameters == attention + 3 * 16 * 24


@pytest.mark.parametrize("model_type", families())
def test_what_megatron_is_told(model_type):
    mixture = MIXTURE if model_type in MIXTURES else None
    hf = replace(HF, model_type=model_type, qk_norm=True, rope_scaling_factor=8.0, mixture=mixture)
    told = family_of(hf).transformer_arguments(hf)
    assert told["add_qkv_bias"] and told["qk_layernorm"] and not told["add_bias_linear"]
    assert (told["num_query_groups"], told["kv_channels"], told["ffn_hidden_size"]) == (4, 2, 24)
    told = family_of(hf).gpt_arguments(hf)
    assert told["rope_scaling"] and told["rope_scaling_factor"] == 8.0 and told["rotary_base"] == 1e4
    assert not told["share_embeddings_and_output_weights"] and told["max_sequence_length"] == 64
