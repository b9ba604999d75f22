"""A Megatron checkpoint (torch_dist format) as global tensors, each in stored chunks that are read one at a time.

A folder comes in; names, shapes and chunks go out, and a chunk's numbers when asked for. torch's own FileSystemReader
is not used: it unpickles `.metadata` without limits and holds every chunk twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from megatron_nft.actor.checkpoint_metadata import check_format, read_common, read_metadata, read_stretch
from megatron_nft.actor.manifest import CheckpointError

OPTIMIZER = "optimizer."
"""Keys of the optimizer's state begin so."""
COMMON = "common_state/shard_0_1"
"""Where Megatron-Core from 0.19 on keeps what all ranks have alike; before, it is in common.pt."""


@dataclass(frozen=True)
class StoredChunk:
    """A box of a global tensor, in one stretch of one file."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int  # byte in the file
    length: int  # bytes


@dataclass(frozen=True)
class StoredTensor:
    """A global tensor."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def at(self, *place: int) -> tuple[StoredChunk, ...]:
        """The chunks of one layer, or of one expert of it; of a tensor without such axes: all."""
        return self._at.get(place, ()) if place else self.chunks

    @cached_property
    def _at(self) -> dict[tuple[int, ...], tuple[StoredChunk, ...]]:
        """By the indices of one or of two axes in front, along which a chunk has one."""
        found: dict[tuple[int, ...], list[StoredChunk]] = {}
        for chunk in self.chunks:
            for axes in (1, 2):
                if all(size == 1 for size in chunk.shape[:axes]):
                    found.setdefault(chunk.offset[:axes], []).append(chunk)
        return {place: tuple(chunks) for place, chunks in found.items()}


class MegatronFolder:
    """A checkpoint."""

    def __init__(self, folder: str | Path) -> None:
        """Reads the metadata, no tensor.

        Raises:
            CheckpointError: no checkpoint, or files are missing or too short.
        """
        self.folder = Path(folder)
        check_format(self.folder)
        metadata = read_metadata(self.folder)
        try:
            self.tensors = {
                key: _stored_tensor(key, value, metadata.storage_data)
                for key, value in metadata.state_dict_metadata.items()
                if isinstance(value, TensorStorageMetadata)
            }
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.folder / '.metadata'}: damaged ({error!r}); copy it again") from None
        common = metadata.storage_data.get(MetadataIndex(COMMON))
        self._common = common and StoredChunk((), (), common.relative_path, common.offset, common.length)
        self._check_files()

    @property
    def weights(self) -> dict[str, StoredTensor]:
        """The model's, less the optimizer's state."""
        return {key: tensor for key, tensor in self.tensors.items() if not key.startswith(OPTIMIZER)}

    @property
    def files(self) -> list[str]:
        """Names of the files that hold tensors."""
        return sorted({chunk.file for chunk in self._chunks()})

    def read(self, tensor: StoredTensor, chunk: StoredChunk) -> Tensor:
        """A chunk's numbers, on the CPU.

        Raises:
            CheckpointError: the file has something else there.
        """
        path = self.folder / chunk.file
        numbers = read_stretch(path, chunk.start, chunk.length, tensor.key)
        found = (tuple(numbers.shape), numbers.dtype) if isinstance(numbers, Tensor) else type(numbers).__name__
        if found != (chunk.shape, tensor.dtype):
            raise CheckpointError(
                f"{path}: {found} in place of {(chunk.shape, tensor.dtype)} of {tensor.key}; copy it again"
            )
        return numbers

    def read_common(self) -> dict[str, Any]:
        """What all ranks have alike, such as the schedule: plain numbers, strings and tensors.

        Raises:
            CheckpointError: it is damaged, or holds objects.
        """
        if self._common is None:
            return read_common(self.folder)
        path = self.folder / self._common.file
        return read_stretch(path, self._common.start, self._common.length, COMMON)[0]

    def _check_files(self) -> None:
        for name in self.files:
            path = self.folder / name
            if Path(name).name != name:
                raise CheckpointError(f"{self.folder}/.metadata: refused, it names {name!r}, a file elsewhere")
            if not path.is_file():
                raise CheckpointError(f"{path}: missing; the checkpoint is not whole, copy it again")
            end = max(chunk.start + chunk.length for chunk in self._chunks() if chunk.file == name)
            if path.stat().st_size < end:
                raise CheckpointError(
                    f"{path}: {path.stat().st_size:,} bytes, {end:,} are needed; the copy was cut short, copy it again"
                )

    def _chunks(self) -> Iterator[StoredChunk]:
        for tensor in self.tensors.values():
            yield from tensor.chunks
        if self._common is not None:
            yield self._common


def _stored_tensor(key: str, value: TensorStorageMetadata, storage: dict) -> StoredTensor:
    chunks = []
    for chunk in value.chunks:
        place = storage[MetadataIndex(key, chunk.offsets)]
        if getattr(place, "transform_descriptors", None):
            raise CheckpointError(f"{key} is stored compressed ({place.transform_descriptors}): not supported")
        chunks.append(
            StoredChunk(tuple(chunk.offsets), tuple(chunk.sizes), place.relative_path, place.offset, place.length)
        )
    return StoredTensor(key, value.properties.dtype, tuple(value.size), tuple(chunks))
