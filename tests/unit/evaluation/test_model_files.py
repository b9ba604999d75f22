"""A model is its files' bytes: all of them, read once."""

import os

import pytest

from megatron_nft.evaluation import model_files
from megatron_nft.evaluation.model_files import model_digest

FILES = {
    "config.json": b"{}",
    "generation_config.json": b'{"eos_token_id": 1}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model-1.safetensors": bytes(3 << 20),
    "model-2.safetensors": bytes(1 << 20),
}


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    for name, content in FILES.items():
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


@pytest.mark.parametrize("name", FILES)
def test_a_byte_in_the_middle_of_any_file(model, tmp_path, name):
    kept = tmp_path / "kept.json"
    before = model_digest(model, kept)
    assert before == model_digest(model, kept) == model_digest(model)
    content = bytearray(FILES[name])
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    assert model_digest(model) == model_digest(model, kept) != before
    (model / name).write_bytes(FILES[name])
    assert model_digest(model, kept) == before


def test_a_copy_with_the_time_of_the_other_file(model, tmp_path):
    """rsync -t and cp -p keep size and time."""
    kept = tmp_path / "kept.json"
    before, file = model_digest(model, kept), model / "model-1.safetensors"
    stat = file.stat()
    file.write_bytes(b"\1" + bytes((3 << 20) - 1))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert model_digest(model, kept) != before


def test_files_that_are_gone_renamed_or_no_part_of_it(model):
    before = model_digest(model)
    (model / "optimizer.pt").write_bytes(b"1")
    (model / "README.md").write_bytes(b"1")
    assert model_digest(model) == before
    (model / "generation_config.json").rename(model / "elsewhere.json")
    without = model_digest(model)
    (model / "model-2.safetensors").rename(model / "model-3.safetensors")
    assert len({before, without, model_digest(model)}) == 3


def test_what_is_unchanged_is_not_read_again(model, tmp_path, monkeypatch):
    kept = tmp_path / "deep" / "kept.json"
    first = model_digest(model, kept)
    monkeypatch.setattr(model_files.hashlib, "file_digest", lambda *_: pytest.fail("a file was read"))
    assert model_digest(model, kept) == first


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "{", "null"])
def test_a_damaged_record_is_none(model, tmp_path, content):
    (tmp_path / "kept.json").write_text(content)
    assert model_digest(model, tmp_path / "kept.json") == model_digest(model)


def test_a_record_that_can_not_be_written_costs_nothing(model, tmp_path):
    (tmp_path / "file").write_text("")
    assert model_digest(model, tmp_path / "file" / "kept.json") == model_digest(model)
