"""A small random model in an HF folder of three files, and its Megatron checkpoint."""

import json

import pytest
import torch
from safetensors.torch import save_file

from checkpoint_tools import hf_to_megatron
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.parameters import parameters

CONFIG = {
    "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 301,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False,
    "dtype": "bfloat16",
}  # fmt: skip


def make_hf(folder, *, dtype=torch.bfloat16, files=3, **changes):
    """Random tensors of the names and shapes that a model of this config has."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "tokenizer.json").write_text('{"a": "tokenizer"}')
    (folder / "generation_config.json").write_text('{"temperature": 0.7}')
    torch.manual_seed(0)
    shapes = {n: s for p in parameters(read_hf_config(folder)) for n, s in p.hf_shapes.items()}
    names, weight_map = list(shapes), {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        tensors = {name: torch.randn(shapes[name]).to(dtype) for name in names[number::files]}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def hf(tmp_path):
    return make_hf(tmp_path / "model")


@pytest.fixture
def megatron(tmp_path, hf):
    hf_to_megatron.convert(hf, tmp_path / "megatron")
    return tmp_path / "megatron"
