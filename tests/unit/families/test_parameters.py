"""A model's parameters as a checkpoint names and shapes them."""

import json

import pytest
import torch

from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.parameters import parameters
from megatron_nft.families.registry import families
from megatron_nft.weights.layouts import to_shard
from tests.unit.checkpoint_tools.conftest import CONFIG
from tests.variants import MIXTURES

FOUR_EXPERTS = {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}


def read_hf_config_of(tmp_path, **changes):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    return read_hf_config(tmp_path)


def model(tmp_path, **changes):
    return parameters(read_hf_config_of(tmp_path, **changes))


def test_shapes_are_those_of_one_rank(tmp_path):
    shapes = {p.key: p.shape for p in model(tmp_path)}
    assert shapes["embedding.word_embeddings.weight"] == shapes["output_layer.weight"] == (320, 32), "padded to 64"
    assert shapes["decoder.layers.self_attention.linear_qkv.weight"] == (32 + 2 * 16, 32)
    assert shapes["decoder.layers.self_attention.linear_qkv.bias"] == (64,)
    assert shapes["decoder.layers.mlp.linear_fc1.weight"] == (96, 32)
    assert shapes["decoder.layers.mlp.linear_fc2.weight"] == (32, 48)
    assert shapes["decoder.layers.mlp.linear_fc1.layer_norm_weight"] == (32,)


def test_every_layer_has_its_own_and_a_tied_model_no_output_layer(tmp_path):
    found = model(tmp_path, tie_word_embeddings=True)
    assert [p.layer for p in found] == [None, *[0] * 7, *[1] * 7, None]
    assert not {"output_layer.weight", "decoder.layers.input_layernorm.weight"} & {p.key for p in found}
    assert "model.layers.1.self_attn.q_proj.bias" in {name for p in found for name in p.hf_shapes}


def test_qwen3_has_norms_of_its_heads(tmp_path):
    shapes = {p.key: p.shape for p in model(tmp_path, model_type="qwen3", head_dim=16)}
    assert shapes["decoder.layers.self_attention.q_layernorm.weight"] == (16,)
    assert shapes["decoder.layers.self_attention.linear_qkv.weight"] == ((4 + 2 + 2) * 16, 32)


@pytest.mark.parametrize("family", families())
def test_shapes_are_those_that_the_layouts_make(tmp_path, family):
    hf = read_hf_config_of(tmp_path, model_type=family, **MIXTURES.get(family, {}))
    for parameter in parameters(hf):
        sources = [torch.zeros(shape) for shape in parameter.hf_shapes.values()]
        assert tuple(to_shard(parameter.rule, sources, ()).shape) == parameter.shape, parameter.key


def test_experts_lie_along_a_second_axis(tmp_path):
    found = model(tmp_path, **FOUR_EXPERTS)
    experts = [p for p in found if p.key == "decoder.layers.mlp.experts.experts.linear_fc1.weight"]
    assert [p.stack for p in experts] == [((layer, 2), (expert, 4)) for layer in range(2) for expert in range(4)]
    assert experts[5].global_shape == (2, 4, 64, 32) and experts[5].place == (1, 1, 0, 0)
    assert list(experts[5].hf_shapes) == [f"model.layers.1.mlp.experts.1.{x}_proj.weight" for x in ("gate", "up")]
    keys = {p.key for p in found}
    assert "decoder.layers.pre_mlp_layernorm.weight" in keys, "no linear has the norm before experts"
    assert "decoder.layers.mlp.linear_fc1.layer_norm_weight" not in keys


def test_where_some_layers_are_dense_each_has_keys_of_its_own(tmp_path):
    found = {p.key: p for p in model(tmp_path, **FOUR_EXPERTS, mlp_only_layers=[0])}
    assert found["decoder.layers.0.mlp.linear_fc1.weight"].global_shape == (96, 32)
    assert found["decoder.layers.1.mlp.experts.experts.linear_fc2.weight"].global_shape == (4, 32, 32)
    assert "decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in found
    assert "decoder.layers.1.pre_mlp_layernorm.weight" in found and "decoder.layers.1.mlp.router.weight" in found
