"""Tokens without a row in the model's embedding are refused before anything starts."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_nft.config import DataConfig
from megatron_nft.data.prompts import DataError, load_prompts, load_tokenizer

MODEL = Path("tests/assets/quickstart/model")


def added(number):
    """A token beside the 640 that the model has."""
    return {"id": number, "content": f"<|new_{number}|>", "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )


@pytest.mark.parametrize(
    ("vocab_size", "new", "format", "text", "token"),
    [
        (640, [640], "chat", "<|new_640|>", 640),  # beyond the padding: the engine dies
        (630, [], "chat", "<|reserved_21|>", None),  # inside the padding: a row of zeros
        (640, [640, 641], "chat", "1 + <|new_641|>", 641),
        (640, [640], "plain", "<|new_640|>", 640),
        (100, [], "plain", "1 + 1", None),
    ],
)
def test_a_token_beyond_the_vocabulary(tmp_path, vocab_size, new, format, text, token):
    model = shutil.copytree(MODEL, tmp_path / "model")
    keys = json.loads((model / "config.json").read_text()) | {"vocab_size": vocab_size}
    (model / "config.json").write_text(json.dumps(keys))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [added(number) for number in new]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    row = {"data_source": "x", "prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": "2"}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"config\.json says vocab_size = {vocab_size}; take the tokenizer") as caught:
        load_prompts(
            [str(tmp_path / "rows.jsonl")], load_tokenizer(model), DataConfig(train=["unused"], prompt_format=format)
        )
    assert token is None or f"token '<|new_{token}|>' of a prompt has id {token}" in str(caught.value)
