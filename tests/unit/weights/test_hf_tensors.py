"""The tensors of an HF folder: one file or several, whole tensors or rows, and what is wrong with a folder."""

import json

import pytest
import torch
from safetensors.torch import save_file

from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.weights.hf_tensors import HFTensors

TENSORS = {"a": torch.arange(12.0).view(4, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def test_a_single_file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    tensors = HFTensors(tmp_path)
    assert sorted(tensors.names) == ["a", "b"] and torch.equal(tensors["a"], TENSORS["a"])
    assert torch.equal(tensors.rows("a", 1, 3), TENSORS["a"][1:3])
    assert tensors.spec("a") == (torch.float32, (4, 3)) and tensors.spec("b") == (torch.bfloat16, (2,))


def test_files_of_an_index(tmp_path):
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in TENSORS}}))
    tensors = HFTensors(tmp_path)
    assert torch.equal(tensors["b"], TENSORS["b"])
    index.write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    with pytest.raises(ModelFolderError, match="has no 'a', although the index says so"):
        HFTensors(tmp_path)


def test_no_weights_a_name_that_is_not_there_and_a_quantized_one(tmp_path):
    with pytest.raises(ModelFolderError, match=r"no model\.safetensors and no"):
        HFTensors(tmp_path)
    save_file({"q": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"no tensor 'x'; is config\.json that of another model"):
        HFTensors(tmp_path)["x"]
    with pytest.raises(ModelFolderError, match="q is of I8; known are F64, F32, F16, BF16"):
        HFTensors(tmp_path).spec("q")
