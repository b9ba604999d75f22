"""launch/download_model.sh, from a stand-in hub and from folders: weights come, and only whole ones are a model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub

MODEL = Path("tests/assets/quickstart/model")
NO_HUB = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model in two files with an index, and what nobody needs."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(MODEL, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


def download(tmp_path, *arguments, endpoint=NO_HUB):
    environment = {
        **os.environ, "PYTHON": sys.executable, "MODELS": f"{tmp_path}/models", "HF_ENDPOINT": endpoint,
        "HF_HOME": f"{tmp_path}/home", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    command = ["launch/download_model.sh", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_all_files_of_a_model_and_nothing_else(tmp_path, published):
    with Hub({"Qwen/Small": published}) as hub:
        done = download(tmp_path, "Qwen/Small", endpoint=hub.address)
    assert done.returncode == 0, done.stderr
    assert f"model: {tmp_path}/models/Small, " in done.stdout
    there = {file.name for file in (tmp_path / "models/Small").iterdir() if file.is_file()}
    assert there == {file.name for file in published.iterdir()} - {"pytorch_model.bin", "README.md"}
    for name in there:
        assert (tmp_path / "models/Small" / name).read_bytes() == (published / name).read_bytes()


def test_what_was_cut_off_is_no_model_and_goes_on(tmp_path, published):
    target = tmp_path / "models/Small"
    target.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json", "model-1-of-2.safetensors"):
        shutil.copy(published / name, target)
    done = download(tmp_path, "Qwen/Small")
    assert done.returncode == 1 and "model: " not in done.stdout
    assert "model-2-of-2.safetensors: missing, although the index names it" in done.stderr
    with Hub({"Qwen/Small": published}) as hub:
        assert "model: " in download(tmp_path, "Qwen/Small", endpoint=hub.address).stdout
        done = download(tmp_path, "Qwen/Nobody", endpoint=hub.address)
    assert done.returncode == 1 and "Qwen/Nobody was not downloaded" in done.stderr


def test_a_folder_is_linked_if_it_is_a_whole_model(tmp_path, published):
    done = download(tmp_path, published)
    assert done.returncode == 0 and f"model: {tmp_path}/models/model, " in done.stdout, done.stderr
    assert (tmp_path / "models/model").resolve() == published
    half = tmp_path / "half"
    shutil.copytree(published, half)
    whole = (half / "model-1-of-2.safetensors").read_bytes()
    (half / "model-1-of-2.safetensors").write_bytes(whole[:-4])
    done = download(tmp_path, half)
    assert done.returncode == 2 and "model-1-of-2.safetensors: not a whole safetensors file" in done.stderr
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"):
        (half / name).unlink()
    done = download(tmp_path, half)
    assert done.returncode == 2 and "pytorch_model.bin is a pickle, which is not read" in done.stderr
    assert not (tmp_path / "models/half").exists()
