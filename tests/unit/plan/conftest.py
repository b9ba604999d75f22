"""Models by their config.json alone: what the planner reads."""

import json

import pytest

QWEN2 = {
    "model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False,
    "vocab_size": 152064, "max_position_embeddings": 131072,
}  # fmt: skip
SHAPES = {
    "32b": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
            "intermediate_size": 27648},
    "math_7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
                "intermediate_size": 18944, "max_position_embeddings": 4096},
}  # fmt: skip
"""Qwen2.5-32B and Qwen2.5-Math-7B."""
SHAPES["math_1.5b"] = {
    "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "intermediate_size": 8960, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
"""Qwen2.5-Math-1.5B."""
SHAPES["30b_a3b"] = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "vocab_size": 151936,
}  # fmt: skip
"""Qwen3-30B-A3B."""


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folders = {}
    for name, shape in SHAPES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "config.json").write_text(json.dumps(QWEN2 | shape))
    return folders
