"""An HF folder is whole or not there."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_nft.weights.export import copy_side_files, finish_hf_folder, hf_folder_in_progress


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "torch_dtype": "float32"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"the old weights")
    return folder


def stage(folder, number, names, dtype=torch.bfloat16):
    file = f"model-{number:05d}.safetensors"
    save_file({name: torch.full((2,), number, dtype=dtype) for name in names}, folder / file, {"format": "pt"})
    return dict.fromkeys(names, file)


def test_two_stages_get_an_index_and_the_base_models_other_files(tmp_path, base):
    with hf_folder_in_progress(tmp_path / "hf") as partial:
        finish_hf_folder(partial, base, [stage(partial, 0, ["a", "b"]), stage(partial, 1, ["c"])])
    hf = tmp_path / "hf"
    index = json.loads((hf / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "a": "model-00000.safetensors", "b": "model-00000.safetensors", "c": "model-00001.safetensors"
    }  # fmt: skip
    assert (hf / "tokenizer.json").exists() and not (hf / "model.safetensors").exists()
    assert json.loads((hf / "config.json").read_text()) == {"model_type": "qwen2", "dtype": "bfloat16"}
    assert all(path.stat().st_mode & 0o044 for path in hf.iterdir()), "others may read it"


def test_a_single_file_gets_the_usual_name(tmp_path, base):
    with hf_folder_in_progress(tmp_path / "hf") as partial:
        finish_hf_folder(partial, base, [stage(partial, 0, ["a"])])
    assert load_file(tmp_path / "hf" / "model.safetensors")["a"].tolist() == [0, 0]


def test_a_failed_export_leaves_the_earlier_one(tmp_path, base):
    with hf_folder_in_progress(tmp_path / "hf") as partial:
        finish_hf_folder(partial, base, [stage(partial, 7, ["a"])])
    with pytest.raises(OSError, match="disk full"), hf_folder_in_progress(tmp_path / "hf") as partial:
        stage(partial, 8, ["a"])
        raise OSError("disk full")
    assert load_file(tmp_path / "hf" / "model.safetensors")["a"].tolist() == [7, 7]
    assert {p.name for p in tmp_path.iterdir()} == {"base", "hf"}


def test_side_files_are_config_and_tokenizer_and_nothing_else(tmp_path):
    """A Trainer's checkpoint, Meta's own files, GGUF and torch's weights beside a model are left where they are."""
    kept = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
            "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
            "LICENSE", "tekken.json"]  # fmt: skip
    left = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin",
            "consolidated.00.pth", "params.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
            "model.safetensors", "model.safetensors.index.json", "model.Q4_K_M.gguf", "tf_model.h5",
            "adapter_model.bin", "flax_model.msgpack", "model.onnx", "log.txt"]  # fmt: skip
    source, folder = tmp_path / "source", tmp_path / "copy"
    for path in (source, folder, source / "global_step100", source / "additional_chat_templates"):
        path.mkdir()
    within = [f"additional_chat_templates/{name}" for name in ("tools.jinja", "optimizer.pt")]
    for name in [*kept, *left, "global_step100/states.pt", *within]:
        (source / name).write_text("x")
    copy_side_files(source, folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*kept, "additional_chat_templates/tools.jinja"}
