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
    with pytest.raises(
        ModelFolderError, match="model_type 'gpt2' is not supported; supported: llama, mistral, mixtral, qwen2"
    ):
        load_config(recipe)


MIXTURE = MODEL | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
REFUSED = {
    "actor.ep=3 actor.dp=3": "actor.ep = 3 does not divide the model's 8 experts; choose one of [1, 2, 4, 8]",
    "actor.ep=2 actor.etp=5 actor.dp=10": "actor.etp = 5 does not divide the experts' intermediate size 48",
    "actor.tp=2 actor.sequence_parallel=true actor.etp=1": "would never sum the experts' gradients",
    "actor.dp=2 actor.etp=2": "actor.etp = 2 with ep = 1 and tp = 1: without expert parallelism experts are cut as all",
    "actor.ep=2": "actor.ep 2 x etp 1 = 2 ranks for the experts do not divide the 1 of tp 1 x cp 1 x dp 1",
    "actor.tp=2 actor.sequence_parallel=true actor.dp=3 actor.ep=1 actor.etp=3": "with ep = 1 and tp = 2",
    "actor.tp=2 actor.ep=2": "actor.tp = 2 with a mixture of experts needs actor.sequence_parallel = true",
    "actor.precision=fp8-blockwise": 'actor.precision = "fp8-blockwise" is not supported for mixtures',
    "lora.rank=8": "lora.rank = 8: qwen3_moe has experts, and there are no adapters for models with experts",
    "actor.tp=2 actor.sequence_parallel=true actor.tp_comm_overlap=true cluster.device=cuda": "tp_comm_overlap = true",
}


@pytest.fixture
def mixture(recipe, tmp_path):
    (tmp_path / "model" / "config.json").write_text(json.dumps(MIXTURE))
    return recipe


@pytest.mark.parametrize(("overrides", "words"), REFUSED.items(), ids=REFUSED)
def test_layouts_of_experts_that_are_wrong_or_impossible(mixture, overrides, words):
    assert words in refusal(mixture, *overrides.split())


def test_experts_and_the_rest_of_a_stage_lie_on_the_same_ranks(mixture, tmp_path):
    sizes = MIXTURE | {"num_experts": 6, "num_key_value_heads": 6, "moe_intermediate_size": 48}
    (tmp_path / "model" / "config.json").write_text(json.dumps(sizes))
    overrides = ["actor.tp=2", "actor.sequence_parallel=true", "actor.dp=3", "actor.ep=3"]
    assert "actor.ep 3 x etp 1 = 3 and actor.tp = 2: one must divide the other" in refusal(mixture, *overrides)


def test_layouts_of_experts_that_fit(mixture):
    sp = "actor.sequence_parallel=true"
    for overrides, etp in ((["actor.dp=4", "actor.ep=2"], 1), (["actor.tp=2", sp], 2),
                           (["actor.tp=2", sp, "actor.dp=2", "actor.ep=2", "actor.etp=2"], 2)):  # fmt: skip
        assert load_config(mixture, overrides).actor.expert_tp == etp
    assert "experts: etp 1 x ep 2" in load_config(mixture, ["actor.dp=4", "actor.ep=2"]).actor.layout
    # 512 is no multiple of 3, but no layer has an MLP of that size.
    assert "intermediate_size" not in refusal(mixture, "actor.tp=3", sp)


def test_a_model_without_experts_takes_none_of_their_settings(recipe):
    assert "actor.ep = 2 is for mixtures of experts, and this qwen2 model is none" in refusal(recipe, "actor.ep=2")
    assert "actor.moe_aux_loss_coeff = 0.001 is for" in refusal(recipe, "actor.moe_aux_loss_coeff=0.001")
