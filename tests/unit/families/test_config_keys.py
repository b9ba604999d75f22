"""Keys of a config.json one by one: what is absent, null or of a wrong type, and what changes the model."""

import json
import warnings

import pytest

from megatron_nft.families.foreign_keys import HARMLESS, OFF
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.families.registry import families
from tests.unit.families.test_hf_config import DIMENSIONS

MISSING = ...


def read(folder, model_type="qwen2", **keys):
    config = {k: v for k, v in (DIMENSIONS | {"model_type": model_type} | keys).items() if v is not MISSING}
    (folder / "config.json").write_text(json.dumps(config))
    return read_hf_config(folder)


def refusal(folder, model_type="qwen2", **keys):
    with pytest.raises(ModelFolderError) as caught:
        read(folder, model_type, **keys)
    assert "config.json" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "keys", "name", "value"),
    [
        ("qwen2", {"rms_norm_eps": MISSING}, "rms_norm_eps", 1e-6),
        ("qwen2", {"max_position_embeddings": MISSING}, "max_position_embeddings", 32768),
        ("mistral", {"max_position_embeddings": MISSING}, "max_position_embeddings", 131072),
        ("llama", {"max_position_embeddings": MISSING}, "max_position_embeddings", 2048),
        ("qwen2", {"num_key_value_heads": None}, "num_key_value_heads", 6),
        ("llama", {"num_key_value_heads": MISSING}, "num_key_value_heads", 6),
        ("mistral", {"num_key_value_heads": MISSING, "num_attention_heads": 16}, "num_key_value_heads", 8),
        ("qwen2", {"num_key_value_heads": MISSING, "num_attention_heads": 32}, "num_key_value_heads", 32),
        ("qwen3", {"head_dim": MISSING}, "head_dim", 128),
        ("llama", {"head_dim": None}, "head_dim", 32),
        ("mistral", {"sliding_window": MISSING}, "sliding_window", 4096),
        ("mistral", {"sliding_window": None}, "sliding_window", None),
        ("qwen2", {"use_sliding_window": True}, "sliding_window", 4096),
        ("seed_oss", {"attention_bias": MISSING}, "qkv_bias", True),
        ("llama", {"tie_word_embeddings": MISSING}, "tie_word_embeddings", False),
    ],
)
def test_absent_and_null_keys_have_the_defaults_of_transformers(tmp_path, model_type, keys, name, value):
    assert getattr(read(tmp_path, model_type, **keys), name) == value


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                 "vocab_size"])  # fmt: skip
@pytest.mark.parametrize("value", [MISSING, None, "4", 0, -1, 2.0, True, [4], float("nan")])
def test_sizes_of_matrices_are_whole_numbers_and_there(tmp_path, key, value):
    words = refusal(tmp_path, **{key: value})
    assert (f"has no {key}" if value is MISSING else f"{key} = {json.dumps(value)} is not") in words
    assert words.endswith("; take the config.json that was published with these weights")


@pytest.mark.parametrize(
    ("model_type", "keys", "words"),
    [
        ("qwen2", {"rms_norm_eps": "1e-6"}, 'rms_norm_eps = "1e-6" is not a positive number'),
        ("qwen2", {"rms_norm_eps": 0.0}, "rms_norm_eps = 0.0 is not a positive number"),
        ("qwen2", {"tie_word_embeddings": "false"}, 'tie_word_embeddings = "false" is neither true nor false'),
        ("qwen2", {"tie_word_embeddings": None}, "tie_word_embeddings = null is neither"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window = 1 is neither"),
        ("qwen2", {"max_window_layers": None}, "max_window_layers = null is not a whole number"),
        ("qwen2", {"sliding_window": -1}, "sliding_window = -1 is not a whole number"),
        ("mistral", {"sliding_window": "4096"}, 'sliding_window = "4096" is not'),
        ("qwen3", {"head_dim": None}, "head_dim = null is not a whole number"),
        ("qwen2", {"head_dim": None}, "head_dim = null is not a whole number"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "transformers for this family: it builds no model"),
        ("mistral", {"layer_types": None}, "layer_types = null is not known to transformers for this family"),
        ("mistral", {"num_key_value_heads": None}, "num_key_value_heads = null is not"),
        ("qwen2", {"num_key_value_heads": 4}, "num_key_value_heads = 4 does not divide num_attention_heads 6"),
        ("llama", {"head_dim": 33}, "head_dim = 33 is not even"),
        ("qwen2", {"hidden_size": 4, "num_attention_heads": 6}, "head_dim = 0 is not even"),
        ("seed_oss", {"attention_bias": None}, "attention_bias = null is neither"),
        ("qwen2", {"rope_theta": None}, "rope_theta = null is not a positive number"),
        ("qwen2", {"rope_theta": "1e6"}, 'rope_theta = "1e6" is not a positive number'),
        ("qwen2", {"rope_scaling": "linear"}, "rope_scaling = 'linear' is not an object"),
        ("qwen2", {"rope_scaling": {"type": "linear"}}, "has no rope_scaling.factor"),
        ("qwen2", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor = 0.5 is less than 1"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "has no rope_scaling.low_freq_factor"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": "4"}}, 'rope_scaling.factor = "4" is not a positive'),
        ("qwen2", {"rope_parameters": {"rope_type": 3}}, "rope type 3 is not supported"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "vLLM stretches it from the"),
        ("qwen2", {"rope_parameters": {"rope_type": "mrope", "mrope_section": [16, 24, 24]}}, "mrope_section"),
        ("qwen2", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "that differ by layer are not"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
         "rope_scaling.partial_rotary_factor = 0.5 is not supported"),
        ("qwen2", {"layer_types": ["full_attention"]}, "are 1, num_hidden_layers is 4"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "name sliding layers, but there is no sliding_window"),
        ("qwen2", {"quantization_config": {"quant_method": "fp8"}}, "(method fp8): quantized weights are not trained"),
        ("llama", {"quantization_config": {"load_in_4bit": True}}, "quantization_config (method unnamed)"),
        ("llama", {"compression_config": {"quant_method": "compressed-tensors"}}, "compression_config (method comp"),
        ("qwen2", {"architectures": ["Qwen2ForSequenceClassification"]}, "is not Qwen2ForCausalLM"),
        ("qwen2", {"architectures": ["LlamaForCausalLM"]}, "is not Qwen2ForCausalLM, which model_type 'qwen2' means"),
        ("qwen2", {"is_causal": False}, "is_causal = false is not supported: tokens would see those after them"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "is not a list of names"),
        ("llama", {"architectures": ["LlamaForCausalLMEagle3"]}, "is not LlamaForCausalLM"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_with_key_value_and_reason(tmp_path, model_type, keys, words):
    assert words in refusal(tmp_path, model_type, **keys)


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_pytorch_tanh", "swish", "relu2", None])
def test_activations_that_actor_and_engine_do_not_have(tmp_path, family, activation):
    words = refusal(tmp_path, family, hidden_act=activation)
    assert f"hidden_act = {json.dumps(activation)} is not supported" in words and '"silu" only' in words


FOREIGN = {
    "logits_scaling": 8.0, "embedding_multiplier": 12, "residual_multiplier": 0.22, "attention_multiplier": 0.015,
    "logit_scale": 0.0625, "scale_emb": 12, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    "query_pre_attn_scalar": 256, "attention_bias": True, "mlp_bias": True, "qkv_bias": True, "bias": True,
    "clip_qkv": 8.0, "partial_rotary_factor": 0.5, "rotary_pct": 0.25, "no_rope_layers": [1, 1, 1, 0],
    "attention_chunk_size": 8192, "num_local_experts": 8, "num_experts": 128, "kv_lora_rank": 512, "use_qk_norm": True,
    "num_nextn_predict_layers": 1, "dual_chunk_attention_config": {"chunk_size": 8}, "per_layer_config": {"0": {}},
    "vision_config": {"depth": 2}, "alibi": True, "rope_interleaved": True, "peft_config": {"r": 8},
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("key", FOREIGN)
def test_keys_that_change_what_is_computed_are_refused(tmp_path, family, key):
    assert f"{key} = {json.dumps(FOREIGN[key])} " in refusal(tmp_path, family, **{key: FOREIGN[key]})


def test_the_same_keys_switched_off_are_fine(tmp_path):
    keys = {"logits_scaling": 1.0, "residual_multiplier": 1, "final_logit_softcapping": None, "attention_bias": False,
            "partial_rotary_factor": 1.0, "num_experts": 0, "no_rope_layers": [], "alibi": False}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path, "llama", **keys)
    assert "attention_bias = true is not supported" in refusal(tmp_path, attention_bias=True)
    assert "scale_emb = true" in refusal(tmp_path, scale_emb=True)


def test_a_key_that_no_one_knows_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"config\.json: brightness, zeal: not known here, and ignored"):
        read(tmp_path, zeal=1, brightness=2)


def test_config_json_of_transformers_says_nothing_unknown(tmp_path):
    from transformers import AutoConfig

    assert not HARMLESS & set(OFF)
    for family in families():
        AutoConfig.for_model(family).save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_hf_config(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "null", '{"model_type": ["qwen2"]}', "[" * 100_000, "\xff"])
def test_a_config_json_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        read_hf_config(tmp_path)


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DIMENSIONS | {"model_type": "qwen2"}), encoding="utf-8-sig")
    assert read_hf_config(tmp_path).vocab_size == 300


def test_yarn_and_linear_reach_megatron(tmp_path):
    from megatron_nft.families.registry import family_of

    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "truncate": False}
    hf = read(tmp_path, rope_scaling=yarn)
    assert family_of(hf).gpt_arguments(hf)["position_embedding_type"] == "yarn"
    attributes = family_of(hf).config_attributes(hf)
    assert attributes["yarn_mscale"] == pytest.approx(1.0) and attributes["yarn_rotary_scaling_factor"] == 4.0
    assert attributes["yarn_correction_range_round_to_int"] is False
    hf = read(tmp_path, rope_scaling={"type": "linear", "factor": 3})
    assert family_of(hf).gpt_arguments(hf)["seq_len_interpolation_factor"] == 3.0
    assert family_of(hf).config_attributes(hf) == {}


def test_numbers_that_are_too_long_for_python(tmp_path):
    text = json.dumps(DIMENSIONS | {"model_type": "qwen2"})
    (tmp_path / "config.json").write_text(text.replace("{", '{"x": ' + "9" * 5000 + ", ", 1))
    with pytest.raises(ModelFolderError, match="is not valid JSON: Exceeds the limit"):
        read_hf_config(tmp_path)
