"""What a Megatron checkpoint says about itself, read without running what may be hidden in it.

`.metadata` is a pickle, written by torch.distributed.checkpoint, and a pickle can name any function of any module and
have it called. Here it may name the record types of torch.distributed.checkpoint, torch's number formats and paths,
nothing else: any other name ends the reading before anything is called. common.pt is read by torch.load with
weights_only=True, which keeps to a list of its own.
"""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_nft.actor.manifest import CheckpointError

FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""metadata.json, by which Megatron-Core knows a checkpoint and its format."""
ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    # The plans of all ranks, which Megatron-Core keeps there for its next save.
    "torch.distributed.checkpoint.planner": {
        "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData",
    },
    "torch.serialization": {"_get_layout"},  # looks a name up in a table of torch.strided and its like
    "torch": {"Size"} | {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "pathlib": {"PosixPath"},  # of the folder that was written to
    "pathlib._local": {"PosixPath"},  # as Python 3.13 calls it
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise CheckpointError(f"names {module}.{name}, which has no place in a checkpoint's metadata")
        return super().find_class(module, name)


def check_format(folder: Path) -> None:
    """
    Raises:
        CheckpointError: the folder is no checkpoint in Megatron's torch_dist format.
    """
    try:
        config = json.loads((folder / "metadata.json").read_text())
    except FileNotFoundError:
        hint = "; it looks like an HF folder" if (folder / "config.json").is_file() else ""
        raise CheckpointError(f"{folder}: no Megatron checkpoint, it has no metadata.json{hint}") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'metadata.json'}: not valid JSON: {error}") from None
    backend = config.get("sharded_backend") if isinstance(config, dict) else None
    if backend != FORMAT["sharded_backend"]:
        raise CheckpointError(f"{folder}: format {backend!r} is not supported; torch_dist is")


def read_metadata(folder: Path) -> Metadata:
    """`folder`/.metadata.

    Raises:
        CheckpointError: it is missing or damaged, or names what metadata has no use for; nothing was called.
    """
    path = folder / ".metadata"

    def load() -> Any:
        with path.open("rb") as file:
            return _Unpickler(file).load()

    metadata = _read(path, load)
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{path}: holds no checkpoint's metadata but {type(metadata).__name__}")
    return metadata


def read_common(folder: Path) -> dict[str, Any]:
    """`folder`/common.pt: what all ranks have alike, such as the schedule. Plain numbers, strings and tensors.

    Raises:
        CheckpointError: it is missing or damaged, or holds objects.
    """
    path = folder / "common.pt"
    return read_weights_only(path, path)


def read_weights_only(path: Path, source: Path | BinaryIO, what: str = "") -> Any:
    """What torch.save has written: tensors, plain values and containers of them.

    Args:
        source: `path`, or a part of that file.
        what: of the file, for the error.

    Raises:
        CheckpointError: it is missing or damaged, or holds objects.
    """
    return _read(path, lambda: torch.load(source, map_location="cpu", weights_only=True), what)


def _read(path: Path, load: Callable[[], Any], what: str = "") -> Any:
    try:
        return load()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole, copy it again") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: refused, it {error}; was it made by someone else?") from None
    except pickle.UnpicklingError as error:
        # torch's own words go on to say how to load it nevertheless.
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise CheckpointError(f"{path}: {what}refused, it names {named[1]}; was it made by someone else?") from None
        first = (str(error).splitlines() or [""])[0].partition(". ")[0]
        raise CheckpointError(f"{path}: {what}damaged ({first}); copy it again") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path}: {what}damaged ({type(error).__name__}: {first}); copy it again") from None
