"""Files written row by row are what safetensors reads."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from checkpoint_tools.safetensors_writer import CastError, SafetensorsWriter


def specs(tensors, dtype=None):
    return {name: (dtype or tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_rows_in_any_order_and_files_of_a_size(tmp_path):
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(3).bfloat16(), "c": torch.randn(2, 3, 4).half()}
    with SafetensorsWriter(tmp_path, specs(tensors), shard_bytes=150) as writer:
        writer.write("c", 0, tensors["c"])
        writer.write("a", 4, tensors["a"][4:])
        writer.write("a", 0, tensors["a"][:4])
        writer.write("b", 0, tensors["b"])
    assert writer.weight_map == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    for name, file in writer.weight_map.items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
        with safe_open(tmp_path / file, framework="pt") as found:
            assert found.metadata() == {"format": "pt"}, "transformers asks for it"


def test_what_is_not_contiguous_and_large_is_cast_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("checkpoint_tools.safetensors_writer.BLOCK_BYTES", 64)
    tensor = torch.randn(40, 33).T
    with SafetensorsWriter(tmp_path, {"a": (torch.bfloat16, (33, 40))}) as writer:
        writer.write("a", 0, tensor)
    assert torch.equal(load_file(tmp_path / writer.weight_map["a"])["a"], tensor.bfloat16())


def test_a_number_that_is_too_large_is_refused(tmp_path):
    with (
        SafetensorsWriter(tmp_path, {"a": (torch.float16, (2,))}) as writer,
        pytest.raises(CastError, match="a: 70000 is too large for float16; take bfloat16"),
    ):
        writer.write("a", 0, torch.tensor([1.0, 70000.0]))
