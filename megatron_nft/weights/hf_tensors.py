"""The tensors of an HF folder, read when asked for: whole, or some rows.

An HF folder comes in, tensors by name go out; nothing is held. Read by actor/hf_weights.py and by checkpoint_tools.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_nft.families.hf_config import ModelFolderError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the number formats that weights come in."""


class HFTensors:
    """The tensors of a folder, by name."""

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            ModelFolderError: no safetensors there, or an index that is not valid.
        """
        self.folder = Path(folder)
        index, single = self.folder / INDEX, self.folder / SINGLE
        if index.is_file():
            try:
                self._file_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
            except (ValueError, KeyError, TypeError):
                raise ModelFolderError(f"{index}: not an index with a weight_map; fetch it again") from None
        elif single.is_file():
            self._file_of = dict.fromkeys(self._names_in(single), single.name)
        else:
            raise ModelFolderError(f"{self.folder}: no {SINGLE} and no {INDEX}")

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._file_of)

    def __getitem__(self, name: str) -> Tensor:
        path = self._path(name)
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    def rows(self, name: str, first: int, end: int) -> Tensor:
        """Rows first..end of a tensor; nothing else of it is read."""
        with safe_open(self._path(name), framework="pt") as file:
            return file.get_slice(name)[first:end]

    def spec(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Number format and shape.

        Raises:
            ModelFolderError: no such tensor, or one that is not of floating-point numbers (a quantized model's).
        """
        with safe_open(self._path(name), framework="pt") as file:
            tensor = file.get_slice(name)
            dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
        if dtype not in DTYPES:
            raise ModelFolderError(f"{self.folder}: {name} is of {dtype}; known are {', '.join(DTYPES)}")
        return DTYPES[dtype], shape

    def check(self) -> None:
        """Opens every file.

        Raises:
            ModelFolderError: one is missing or not whole, or has not what the index says.
        """
        for file in sorted(set(self._file_of.values())):
            named = {name for name in self._file_of if self._file_of[name] == file}
            path = self._path(min(named))
            there = self._names_in(path)
            if missing := sorted(named - there):
                raise ModelFolderError(f"{path} has no {missing[0]!r}, although the index says so; fetch both again")

    def _path(self, name: str) -> Path:
        if name not in self._file_of:
            raise ModelFolderError(f"{self.folder}: no tensor {name!r}; is config.json that of another model?")
        path = self.folder / self._file_of[name]
        if not path.is_file():
            raise ModelFolderError(f"{path}: missing, although the index names it for {name!r}; fetch it again")
        return path

    @staticmethod
    def _names_in(path: Path) -> set[str]:
        try:
            with safe_open(path, framework="pt") as file:
                return set(file.keys())
        except SafetensorError as error:
            size = path.stat().st_size
            raise ModelFolderError(
                f"{path}: not a whole safetensors file ({size:,} bytes: {error}); fetch it again"
            ) from None
