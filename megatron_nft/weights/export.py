"""A complete HF folder, published only when whole.

Ranks write safetensors files into a folder in progress; config, tokenizer and index join them here; then it gets its
name. Called by cluster/ranks.py.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_nft.families.adapter_folder import CONFIG, WEIGHTS

SIDE_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "chat_template.*", "tokenizer*", "tekken.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "sentencepiece*.model", "configuration_*.py", "modeling_*.py", "tokenization_*.py", "LICENSE*", "NOTICE*",
    "USE_POLICY*", "README*",
)  # fmt: skip
"""What users read beside its weights, and its terms. A folder may have much else: optimizers, other formats."""
SIDE_FOLDERS = ("additional_chat_templates",)


@contextmanager
def hf_folder_in_progress(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to write into. It takes `folder`'s place at the end, or is removed on an
    error."""
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_side_files(source: Path, folder: Path) -> None:
    """Config, tokenizer and terms of an HF folder."""
    for file in source.iterdir():
        if file.is_file() and any(file.match(pattern) for pattern in SIDE_FILES):
            shutil.copy2(file, folder / file.name)
        elif file.is_dir() and file.name in SIDE_FOLDERS:
            (folder / file.name).mkdir(exist_ok=True)
            for template in file.glob("*.jinja"):
                shutil.copy2(template, folder / file.name / template.name)


def finish_hf_folder(folder: Path, base_model: Path, weight_maps: Sequence[dict[str, str]]) -> None:
    """Adds the index of the weight files, config and tokenizer.

    Args:
        base_model: folder with the config and tokenizer of the model that training started from.
        weight_maps: HF name -> file name, of each pipeline stage.
    """
    copy_side_files(base_model, folder)
    weight_map = {name: file for stage in weight_maps for name, file in stage.items()}
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    _set_dtype(folder, weight_map)
    if len(files := set(weight_map.values())) == 1:
        os.replace(folder / files.pop(), folder / "model.safetensors")
        return
    total = sum((folder / file).stat().st_size for file in files)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def finish_adapter_folder(folder: Path, config: dict[str, Any], weight_maps: Sequence[dict[str, str]]) -> None:
    """One file of the stages' adapters, and its configuration: a PEFT folder.

    Args:
        config: adapter_config.json.
        weight_maps: PEFT's name -> file name, of each pipeline stage.
    """
    files = sorted({file for stage in weight_maps for file in stage.values()})
    tensors = {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    for file in files:
        (folder / file).unlink()
    save_file(dict(sorted(tensors.items())), folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _set_dtype(folder: Path, weight_map: dict[str, str]) -> None:
    """config.json must state the number format that was written: it may differ from the base model's."""
    name, file = next(iter(weight_map.items()))
    with safe_open(folder / file, framework="pt") as tensors:
        dtype = str(tensors.get_tensor(name).dtype).removeprefix("torch.")
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
