"""The tensors of an HF folder, read when asked for: whole, or some rows.

An HF folder comes in, tensors by name go out; nothing is held. Read by actor/hf_weights.py and by checkpoint_tools.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.families.weight_files import SINGLE, check_format, read_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the number formats that weights come in."""


class HFTensors:
    """The tensors of a folder, by name."""

    def __init__(self, folder: str | Path, single: str = SINGLE) -> None:
        """
        Args:
            single: name of the file, where there is one only.

        Raises:
            ModelFolderError: no safetensors there, a file that is missing or not whole, or an index that is not valid.
        """
        self.folder = Path(folder)
        self._tensors = read_tensors(self.folder, single)

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._tensors)

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
        self._path(name)
        tensor = self._tensors[name]
        check_format(self.folder, name, tensor.dtype)
        return DTYPES[tensor.dtype], tensor.shape

    def _path(self, name: str) -> Path:
        if name not in self._tensors:
            raise ModelFolderError(f"{self.folder}: no tensor {name!r}; is config.json that of another model?")
        return self._tensors[name].file
