"""Writes a Megatron checkpoint (torch_dist format) chunk by chunk, in one process without process groups.

Chunks come in with a function that reads each; files and their metadata go out through torch.distributed.checkpoint's
FileSystemWriter, as if small ranks had written a file each: the writer holds all of a file's tensors until the file
ends, so files are kept small.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan, WriteItem
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItemType

from megatron_nft.actor.checkpoint_metadata import FORMAT

FILE_BYTES = 256 << 20
"""A file ends before it outgrows this, so so much is held at a time; a larger chunk has a file of its own."""


@dataclass(frozen=True)
class Chunk:
    """A box of a global tensor, to be written."""

    key: str
    size: tuple[int, ...]  # of the global tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]  # gives prod(shape) numbers of that dtype

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_checkpoint(folder: Path, chunks: Sequence[Chunk], on_chunk: Callable[[Chunk], None]) -> None:
    """Writes all chunks into `folder`, in order, and what Megatron-Core needs to load them.

    Args:
        on_chunk: called when a chunk has been read.

    Raises:
        ValueError: chunks overlap or lie outside of their tensor.
    """
    planner = _LazyPlanner(chunks, on_chunk)
    # 0: reads in order and nothing ahead, CUDA or not. The caller brings all files to the disk at once.
    writer = FileSystemWriter(folder, per_thread_copy_ahead=0, sync_files=False)
    writer.set_up_storage_writer(is_coordinator=True)
    plans = [SavePlan([_write_item(chunk) for chunk in file]) for file in _files(chunks)]
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(plan) for plan in plans])
    results = [writer.write_data(plan, planner).value() for plan in writer.prepare_global_plan(plans)]
    writer.finish(metadata, results)
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(FORMAT))


def _files(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    files: list[list[Chunk]] = [[]]
    filled = 0
    for chunk in chunks:
        if files[-1] and filled + chunk.num_bytes > FILE_BYTES:
            files.append([])
            filled = 0
        files[-1].append(chunk)
        filled += chunk.num_bytes
    return files


def _write_item(chunk: Chunk) -> WriteItem:
    box = ChunkStorageMetadata(torch.Size(chunk.offset), torch.Size(chunk.shape))
    data = TensorWriteData(box, TensorProperties(dtype=chunk.dtype), torch.Size(chunk.size))
    return WriteItem(MetadataIndex(chunk.key, chunk.offset), WriteItemType.SHARD, tensor_data=data)


class _LazyPlanner(DefaultSavePlanner):
    """Reads a chunk when the writer wants its numbers."""

    def __init__(self, chunks: Sequence[Chunk], on_chunk: Callable[[Chunk], None]) -> None:
        super().__init__(flatten_state_dict=False)
        self._chunks = {(chunk.key, tuple(chunk.offset)): chunk for chunk in chunks}
        self._on_chunk = on_chunk

    def resolve_data(self, write_item: WriteItem) -> Any:
        chunk = self._chunks[write_item.index.fqn, tuple(write_item.index.offset)]
        tensor = chunk.read().reshape(chunk.shape)
        assert tensor.dtype == chunk.dtype, f"{chunk.key}: read as {tensor.dtype}, planned as {chunk.dtype}"
        self._on_chunk(chunk)
        return tensor
