"""A recipe of a small model, and what is said when it is refused."""

import json

import pytest

from megatron_nft.config import RecipeError, load_config

MODEL = {
    "model_type": "qwen2", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'[model]\npath = "{model}"\n[data]\ntrain = ["train.parquet"]\nmax_prompt_tokens = 100\n'
        "[rollout]\nmax_answer_tokens = 100\n"
    )
    return path


def refusal(recipe, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_config(recipe, overrides)
    return str(caught.value)
