"""A Megatron checkpoint is data: what it says about itself, read without running what may be hidden in it.

`.metadata` is a pickle, written by torch.distributed.checkpoint, and a pickle can name any function of any module and
have it called. Here it may name the record types of torch.distributed.checkpoint, torch's number formats and paths,
nothing else: any other name ends the reading before anything is called. common.pt and the objects among the tensors
(random state, the layers' extra state) are read by torch.load with weights_only=True, which keeps to a list of its own.
Called by checkpoint.py before Megatron reads anything, and by checkpoint_tools.
"""

import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta

from megatron_nft.actor.manifest import CheckpointError
from megatron_nft.families.hf_config import kind_of

METADATA, METADATA_JSON, COMMON = ".metadata", "metadata.json", "common.pt"
"""What describes the whole. The last by megatron-core before 0.19 only."""

FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""metadata.json, by which Megatron-Core knows a checkpoint and its format."""
LIMITS = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE": "0"}
"""torch's and TransformerEngine's own variables, by which they read no pickle without limits."""
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


REMEDY = "was it made by someone else? Use one of a run of yours"


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
        config = json.loads((folder / METADATA_JSON).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no Megatron checkpoint, it has no metadata.json{kind_of(folder)}") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / METADATA_JSON}: not valid JSON: {error}") from None
    backend = config.get("sharded_backend") if isinstance(config, dict) else None
    if backend != FORMAT["sharded_backend"]:
        raise CheckpointError(f"{folder}: format {backend!r} is not supported; torch_dist is")


def check_pickles(folder: Path) -> None:
    """Reads every pickle of a checkpoint with limits, so that Megatron and torch see nothing that these refuse.

    Raises:
        CheckpointError: no checkpoint, or a pickle in it is damaged or names what it may not; nothing was called.
    """
    check_format(folder)
    metadata = read_metadata(folder)
    if (folder / COMMON).exists():
        read_common(folder)
    for index, place in metadata.storage_data.items():
        path = folder / place.relative_path
        if Path(place.relative_path).name != place.relative_path:
            raise CheckpointError(f"{folder / METADATA}: refused, it names {place.relative_path!r}, a file elsewhere")
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            read_stretch(path, place.offset, place.length, index.fqn)


@contextmanager
def read_as_data(folder: Path) -> Iterator[None]:
    """While it lasts torch reads no pickle without limits, whoever asks it to: a file may change after `check_pickles`.

    Nor does TransformerEngine, whatever the environment allows it.

    Raises:
        CheckpointError: a rank could not read the checkpoint in `folder`.
    """

    def read(reader: FileSystemReader, *_: Any, **more: Any) -> Metadata:
        metadata = read_metadata(Path(reader.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = reader.load_id
        return metadata

    unlimited, before = FileSystemReader.read_metadata, {name: os.environ.get(name) for name in LIMITS}
    os.environ |= LIMITS
    FileSystemReader.read_metadata = read  # torch's own is pickle.load
    try:
        yield
    except CheckpointException as error:  # torch's, of any rank; no Exception
        first = next(iter(error.failures.values()))[0]
        words = (str(first).splitlines() or [""])[0]
        named = re.search(r"GLOBAL (\S+)", str(first))
        if isinstance(first, CheckpointError):
            raise first from None
        if named:
            raise CheckpointError(f"{folder}: refused, a tensor in it names {named[1]}; {REMEDY}") from None
        raise CheckpointError(f"{folder}: does not load ({type(first).__name__}: {words}); copy it again") from None
    finally:
        FileSystemReader.read_metadata = unlimited
        for name, value in before.items():
            del os.environ[name]
            os.environ |= {} if value is None else {name: value}


def read_metadata(folder: Path, name: str = METADATA) -> Metadata:
    """`folder`/.metadata.

    Raises:
        CheckpointError: it is missing or damaged, or names what metadata has no use for; nothing was called.
    """
    path = folder / name

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
    path = folder / COMMON
    return _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True))


def read_stretch(path: Path, start: int, length: int, name: str) -> Any:
    """A tensor, or an object among the tensors: what torch.save has written into a stretch of a file.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than plain values and tensors.
    """

    def read() -> Any:
        with path.open("rb", buffering=0) as file:
            return torch.load(FileSlice(file, start, length), map_location="cpu", weights_only=True)

    return _read(path, read, f"{name} in it is ")


def _read(path: Path, load: Callable[[], Any], what: str = "") -> Any:
    try:
        return load()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole, copy it again") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: refused, it {error}; {REMEDY}") from None
    except pickle.UnpicklingError as error:
        # torch's own words go on to say how to load it nevertheless.
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise CheckpointError(f"{path}: {what}refused, it names {named[1]}; {REMEDY}") from None
        first = (str(error).splitlines() or [""])[0].partition(". ")[0]
        raise CheckpointError(f"{path}: {what}damaged ({first}); copy it again") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path}: {what}damaged ({type(error).__name__}: {first}); copy it again") from None


class FileSlice(io.RawIOBase):
    """A stretch of an open file as a file of its own, which torch.load can read in place."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: bytearray) -> int:
        room = memoryview(buffer)[: max(0, min(len(buffer), self._length - self._at))]
        self._file.seek(self._start + self._at)
        filled = 0
        while filled < len(room) and (count := self._file.readinto(room[filled:])):  # Linux gives 2 GiB at most
            filled += count
        self._at += filled
        return filled
