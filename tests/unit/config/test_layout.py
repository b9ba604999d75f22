"""Layouts and lengths against the model's dimensions, and model folders that are none."""

import json

import pytest

from megatron_nft.config import load_config
from megatron_nft.families.hf_config import ModelFolderError
from tests.unit.config.conftest import MODEL, refusal


def test_tp_that_does_not_divide_the_heads(recipe):
    assert refusal(recipe, "actor.tp=3").splitlines()[1:] == [
        "  actor.tp = 3 does not divide the model's 2 key/value heads; choose one of [1, 2]",
        "  actor.tp = 3 does not divide the model's intermediate_size 512",
    ]


def test_pp_that_does_not_divide_the_layers(recipe):
    assert "actor.pp = 3 does not divide the model's 4 layers; choose one of [1, 2, 4]" in refusal(recipe, "actor.pp=3")


def test_virtual_stages_and_uneven_ends(recipe):
    assert load_config(recipe, ["actor.pp=2", "actor.vpp=2"]).actor.vpp == 2
    assert load_config(recipe, ["actor.pp=2", "actor.num_layers_in_last_pipeline_stage=1"])
    assert "actor.vpp = 2 needs actor.pp > 1" in refusal(recipe, "actor.vpp=2")
    message = refusal(recipe, "actor.pp=2", "actor.vpp=3")
    assert "pp = 2 x vpp = 3 stages do not divide the model's 4 layers; with this pp choose vpp from [1, 2]" in message
    message = refusal(recipe, "actor.pp=2", "actor.vpp=2", "actor.num_layers_in_first_pipeline_stage=1")
    assert "num_layers_in_first_pipeline_stage = 1 does not split evenly over actor.vpp = 2 stages" in message
    message = refusal(recipe, "actor.pp=2", "actor.num_layers_in_first_pipeline_stage=4")
    assert "num_layers_in_first_pipeline_stage = 4 leave 0 of the model's 4 layers for 1 other ranks" in message
    assert "needs actor.pp > 1" in refusal(recipe, "actor.num_layers_in_last_pipeline_stage=2")


def test_sequences_longer_than_the_model(recipe):
    assert "= 600 > the model's max_position_embeddings 512" in refusal(recipe, "rollout.max_answer_tokens=500")


def test_sequences_beyond_a_sliding_window(recipe, tmp_path):
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(MODEL | {"model_type": "mistral", "sliding_window": 128})
    )
    message = refusal(recipe)
    assert "rollout.max_answer_tokens = 200 > the model's sliding_window 128" in message
    assert load_config(recipe, ["rollout.max_answer_tokens=28"])


def test_missing_model_folder(recipe):
    with pytest.raises(ModelFolderError, match="no such folder; give a local HF model folder"):
        load_config(recipe, ["model.path=/nowhere"])


def test_unsupported_architecture(recipe, tmp_path):
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL | {"model_type": "gpt2"}))
    with pytest.raises(ModelFolderError, match="model_type 'gpt2' is not supported; supported: llama, mistral, qwen2"):
        load_config(recipe)
