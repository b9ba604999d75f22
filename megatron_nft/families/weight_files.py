"""What the safetensors files of an HF folder hold, by their headers alone, and whether it is the model of config.json.

A folder comes in; names, number formats, shapes and places in files go out. `check_weights` is asked wherever weights
are read: when a recipe is loaded (training, evaluation, doctor, the planner), by each rank before it loads a model or a
reference, and by conversion. A few kilobytes of each file are read; no torch.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_nft.families.config_json import read_json
from megatron_nft.families.family import HFConfig, ModelFolderError
from megatron_nft.families.parameters import parameters

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FORMATS = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the number formats that weights come in."""
NOT_WEIGHTS = ("rotary_emb.inv_freq",)
"""Endings of tensors that older folders have and that config.json says as well."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
LENGTH_BYTES, MAX_HEADER_BYTES = 8, 100 << 20
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where one lies, and what it is."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte in the file
    end: int


def has_weights(folder: str | Path) -> bool:
    """Whether there are weights to check."""
    return any((Path(folder) / name).is_file() for name in (INDEX, SINGLE))


def weight_map(folder: Path) -> dict[str, str] | None:
    """Name of each tensor -> its file, as the index says; None: there is no index.

    Raises:
        ModelFolderError: it is not valid.
    """
    index = folder / INDEX
    if not index.is_file():
        return None
    try:
        found = read_json(index).get("weight_map")
    except ModelFolderError as error:
        raise ModelFolderError(f"{error}: not an index with a weight_map; fetch it again") from None
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise ModelFolderError(f"{index}: not an index with a weight_map; fetch it again")
    if strangers := [file for file in found.values() if Path(file).name != file]:
        raise ModelFolderError(f"{index}: names {strangers[0]!r}, a file elsewhere; fetch it again")
    return found


def read_tensors(folder: str | Path, single: str = SINGLE) -> dict[str, StoredTensor]:
    """All of a folder, by name.

    Args:
        single: name of the file, where there is no index.

    Raises:
        ModelFolderError: a file is missing or not whole, or has not what the index says.
    """
    folder = Path(folder)
    file_of = weight_map(folder)
    if file_of is None:
        if not (folder / single).is_file():
            raise ModelFolderError(f"{folder}: no {single} and no {INDEX}")
        return dict(_tensors_in(folder / single))
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(file_of.values())):
        path = folder / file
        named = {name for name, place in file_of.items() if place == file}
        if not path.is_file():
            raise ModelFolderError(f"{path}: missing, although the index names it for {min(named)!r}; fetch it again")
        there = dict(_tensors_in(path))
        if missing := sorted(named - set(there)):
            raise ModelFolderError(f"{path} has no {missing[0]!r}, although the index says so; fetch both again")
        if twice := sorted(set(tensors) & set(there)):
            raise ModelFolderError(f"{path} has {twice[0]!r}, as {tensors[twice[0]].file.name} has; fetch both again")
        tensors |= there
    return tensors


def check_weights(folder: str | Path, hf: HFConfig, *, allows_mixed: bool = False) -> None:
    """
    Args:
        allows_mixed: the parts of a parameter may be of several number formats; they are cast to one.

    Raises:
        ModelFolderError: a file or a tensor is missing, left over, of another shape than config.json says, of no
            floating-point numbers (a quantized model's), or a tied model has another head.
    """
    folder, tensors, used = Path(folder), read_tensors(folder), set()
    formats: dict[str, tuple[str, str]] = {}  # parameter, less its layer -> the format of its first tensor, and which
    for parameter in parameters(hf):
        for name, shape in parameter.hf_shapes.items():
            if name not in tensors:
                raise ModelFolderError(f"{folder}: no tensor {name!r}; {_why_missing(name)}")
            found = tensors[name]
            check_format(folder, name, found.dtype)
            if found.shape != shape:
                raise ModelFolderError(f"{folder}: {name} is {found.shape}, by config.json it is {shape}")
            dtype, first = formats.setdefault(parameter.key, (found.dtype, name))
            if found.dtype != dtype and not allows_mixed:
                raise ModelFolderError(
                    f"{folder}: {name} is of {found.dtype}, {first} of {dtype}; one parameter's must be of one number "
                    "format: write the folder anew in one (hf-to-megatron --dtype, or transformers' save_pretrained)"
                )
            used.add(name)
    if hf.tie_word_embeddings and HEAD in tensors:
        _check_tied_head(folder, tensors[HEAD], tensors[EMBEDDING])
        used.add(HEAD)
    left = sorted(name for name in tensors if name not in used and not name.endswith(NOT_WEIGHTS))
    if left:
        raise ModelFolderError(
            f"{folder}: {len(left)} tensors have no place in a {hf.model_type} model of this config.json, the first is "
            f"{left[0]!r}"
        )


def check_format(folder: Path, name: str, dtype: str) -> None:
    """
    Raises:
        ModelFolderError: a tensor's numbers are no floating-point ones that stand for themselves.
    """
    if dtype not in FORMATS:
        raise ModelFolderError(
            f"{folder}: {name} is of {dtype}; known are {', '.join(FORMATS)}; quantized weights are not trained, give "
            "the folder that they were made from"
        )


def _why_missing(name: str) -> str:
    if name == HEAD:
        return "config.json says tie_word_embeddings = false; if the model shares its embedding, set it to true"
    return "is config.json that of another model?"


def _check_tied_head(folder: Path, head: StoredTensor, embedding: StoredTensor) -> None:
    is_same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and all(
        one == other for one, other in zip(_blocks(head), _blocks(embedding), strict=True)
    )
    if not is_same:
        raise ModelFolderError(
            f"{folder}: config.json says tie_word_embeddings = true, but {HEAD} is not {EMBEDDING}; if the head is the "
            "model's own, set tie_word_embeddings to false, else take it out of the file"
        )


def _blocks(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for at in range(tensor.start, tensor.end, BLOCK_BYTES):
            yield file.read(min(BLOCK_BYTES, tensor.end - at))


def _tensors_in(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        first, last = LENGTH_BYTES + length, LENGTH_BYTES + length
        found = []
        for name, entry in header.items():
            start, end = (int(offset) + first for offset in entry["data_offsets"])
            found.append((name, StoredTensor(path, str(entry["dtype"]), tuple(map(int, entry["shape"])), start, end)))
            last = max(last, end)
        if last != size:
            raise ValueError(f"its header says {last:,}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ModelFolderError(
            f"{path}: not a whole safetensors file ({size:,} bytes: {error}); fetch it again"
        ) from None
    except OSError as error:
        raise ModelFolderError(f"{path}: {error.strerror}") from None
    yield from found
