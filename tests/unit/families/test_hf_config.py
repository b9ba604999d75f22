"""config.json -> HFConfig: what differs between the families, and what is refused."""

import json

import pytest

from megatron_nft.families.hf_config import ModelFolderError, read_hf_config

DIMENSIONS = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
}  # fmt: skip


def read(folder, **settings):
    (folder / "config.json").write_text(json.dumps(DIMENSIONS | settings))
    return read_hf_config(folder)


def test_qwen2_has_a_bias_and_llama_has_none(tmp_path):
    assert read(tmp_path, model_type="qwen2").qkv_bias
    llama = read(tmp_path, model_type="llama", attention_bias=False, mlp_bias=False)
    assert not llama.qkv_bias and llama.head_dim == 32


def test_rope_theta_of_both_generations_of_config_files(tmp_path):
    new = {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}}
    assert read(tmp_path, model_type="llama", **new).rope_theta == 100000.0
    assert read(tmp_path, model_type="llama", rope_theta=500000.0, rope_scaling=None).rope_theta == 500000.0
    assert read(tmp_path, model_type="llama").rope_theta == 10000.0


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_a_llama_with_biases_is_refused(tmp_path, bias):
    with pytest.raises(ModelFolderError, match=f"{bias} = true is not supported"):
        read(tmp_path, model_type="llama", **{bias: True})


LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
}  # fmt: skip


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_rope_scaling_of_llama_3_is_known_with_its_usual_constants(tmp_path, key):
    assert read(tmp_path, model_type="llama", rope_scaling={key: "llama3", **LLAMA3}).rope_scaling_factor == 8.0
    assert read(tmp_path, model_type="llama").rope_scaling_factor is None
    with pytest.raises(ModelFolderError, match="rope type 'longrope' is not supported; supported: default, linear"):
        read(tmp_path, model_type="qwen2", rope_scaling={key: "longrope", "factor": 4.0})
    with pytest.raises(ModelFolderError, match=r"high_freq_factor = 8\.0 is not supported; Megatron-Core knows 4\.0"):
        read(tmp_path, model_type="llama", rope_scaling={key: "llama3", **LLAMA3, "high_freq_factor": 8.0})


def test_qwen3_normalises_queries_and_keys(tmp_path):
    qwen3 = read(tmp_path, model_type="qwen3", attention_bias=False, head_dim=64)
    assert qwen3.qk_norm and not qwen3.qkv_bias and qwen3.head_dim == 64


def test_sliding_windows(tmp_path):
    """Mistral's is in force unless null, Qwen's only if use_sliding_window says so."""
    assert read(tmp_path, model_type="mistral", sliding_window=4096).sliding_window == 4096
    assert read(tmp_path, model_type="mistral", sliding_window=None).sliding_window is None
    assert read(tmp_path, model_type="qwen2", sliding_window=4096, use_sliding_window=False).sliding_window is None
    assert read(tmp_path, model_type="qwen2", sliding_window=4096, use_sliding_window=True).sliding_window == 4096


def test_attention_costs_as_much_as_the_matrices_at_this_length(tmp_path):
    """Qwen2.5-7B: 233.0 M parameters a layer; 28 heads of 128."""
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    hf = read(tmp_path, model_type="qwen2", **sizes)
    assert hf.layer_parameters == 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944 == 233_046_016
    assert hf.attention_parity_tokens == 233_046_016 / 3584
