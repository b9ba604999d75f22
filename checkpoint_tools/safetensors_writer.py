"""Safetensors files written row by row: no tensor need be in memory as a whole.

Names, number formats and shapes come in first and settle where everything lies; then rows, in any order. The format:
8 bytes with the header's length, the header (JSON: of each tensor its dtype, shape and place), and the numbers.
https://huggingface.co/docs/safetensors
"""

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from megatron_nft.weights.hf_tensors import DTYPES

SHARD_BYTES = 5_000_000_000
"""Largest file, as on the hub; a larger tensor has a file of its own."""
BLOCK_BYTES = 64 << 20
"""So much is cast at a time."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CastError(ValueError):
    """Numbers don't fit into the number format that was asked for."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: str
    start: int  # byte in the file
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize


class SafetensorsWriter:
    """The files of a folder, open until the `with` block ends."""

    def __init__(
        self, folder: Path, specs: dict[str, tuple[torch.dtype, tuple[int, ...]]], shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Creates the files, with nothing but headers in them.

        Args:
            specs: name -> number format and shape, in the order in which they are to lie.
        """
        self._places: dict[str, Place] = {}
        self._files: dict[str, int] = {}
        shards = _shards(specs, shard_bytes)
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            header, start = {"__metadata__": {"format": "pt"}}, 0
            for name in names:
                dtype, shape = specs[name]
                end = start + prod(shape) * dtype.itemsize
                header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
                start = end
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8
            first = 8 + len(text)
            for name in names:
                dtype, shape = specs[name]
                self._places[name] = Place(file, first + header[name]["data_offsets"][0], shape, dtype)
            self._files[file] = descriptor = os.open(folder / file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            os.truncate(descriptor, first + start)
            os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)

    @property
    def weight_map(self) -> dict[str, str]:
        """Name -> file."""
        return {name: place.file for name, place in self._places.items()}

    def write(self, name: str, first_row: int, rows: Tensor) -> None:
        """Writes rows first_row.. of a tensor, cast to its number format.

        Raises:
            CastError: a number is too large for that format.
        """
        place = self._places[name]
        assert rows.shape[1:] == place.shape[1:] and first_row + len(rows) <= place.shape[0], (name, rows.shape)
        block = max(1, BLOCK_BYTES // place.row_bytes)
        at = place.start + first_row * place.row_bytes
        for piece in rows.split(block):
            numbers = memoryview(cast(piece, place.dtype, name).contiguous().view(torch.uint8).numpy()).cast("B")
            while numbers:
                written = os.pwrite(self._files[place.file], numbers, at)
                numbers, at = numbers[written:], at + written

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in another number format.

    Raises:
        CastError: a number is too large for it.
    """
    out = tensor.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max and (out.isinf() & tensor.isfinite()).any():
        worst = tensor.abs().max().item()
        raise CastError(f"{name}: {worst:g} is too large for {str(dtype).removeprefix('torch.')}; take bfloat16")
    return out


def _shards(specs: dict[str, tuple[torch.dtype, tuple[int, ...]]], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in specs.items():
        size = prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
