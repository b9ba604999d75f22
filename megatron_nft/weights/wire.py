"""A weight bucket on its way from one process to another on the same machine.

Named tensors come in at the sender (weights/gather), the same tensors come out at the receiver (rollout/receive). The
data lies in a safetensors file in a folder of the caller's choice, usually in shared memory; only a small
`BucketManifest` travels by RPC. Imports torch and safetensors only, so that both sides may import it.
"""

import mmap
import uuid
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class WireError(RuntimeError):
    """A bucket could not be written or read, or is not what its manifest says.

    `missing` and `unexpected` list the names that the manifest has and the file has not, and the other way round.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = (), unexpected: tuple[str, ...] = ()):
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected


@dataclass(frozen=True, kw_only=True)
class BucketManifest:
    """Where a bucket lies and what is in it."""

    path: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # HF name -> (dtype, such as "bfloat16", and shape), by name
    checksum: int | None = None  # CRC-32 of the file's bytes, where asked for

    @property
    def num_bytes(self) -> int:
        """Of the tensors' data, without the file's header."""
        return sum(prod(shape) * getattr(torch, dtype).itemsize for dtype, shape in self.tensors.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for an RPC."""
        tensors = {name: [dtype, list(shape)] for name, (dtype, shape) in self.tensors.items()}
        return {"path": self.path, "tensors": tensors, "checksum": self.checksum}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "BucketManifest":
        """The inverse of `to_dict`.

        Raises:
            WireError: a key is missing or unknown, or a value has the wrong type.
        """
        kinds = {"path": str, "tensors": dict, "checksum": int | None}
        wrong = sorted(kinds.keys() ^ plain.keys()) or [
            k for k, kind in kinds.items() if not isinstance(plain[k], kind)
        ]
        if wrong:
            raise WireError(
                f"bucket manifest {plain!r}: wrong at {', '.join(wrong)}; send what BucketManifest.to_dict gives"
            )
        tensors = {name: (dtype, tuple(shape)) for name, (dtype, shape) in plain["tensors"].items()}
        return cls(path=plain["path"], tensors=tensors, checksum=plain["checksum"])


def write_bucket(
    folder: str | Path, index: int, tensors: dict[str, Tensor], *, with_checksum: bool = False
) -> BucketManifest:
    """Writes `tensors` (HF name -> tensor, any shapes and dtypes) as one new file in `folder`.

    Views into one flat buffer are written without a copy; tied tensors are written twice.

    Raises:
        WireError: nothing to write, or the folder is missing or full.
    """
    if not tensors:
        raise WireError(f"bucket {index} is empty; send no bucket instead")
    # A fresh name each time: a receiver may still have an earlier bucket mapped, and rewriting that file under it
    # would change its tensors (or end its process with SIGBUS).
    path = Path(folder) / f"bucket-{index:05d}-{uuid.uuid4().hex[:12]}.safetensors"
    try:
        save_file(_apart(tensors), path)
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: overlapping views
        path.unlink(missing_ok=True)
        need = sum(t.nbytes for t in tensors.values()) / 2**20
        raise WireError(
            f"cannot write bucket {index} ({need:.0f} MiB) to {folder}: {error}; give an existing folder with room for "
            "two buckets, or lower weights.bucket_mib"
        ) from error
    return BucketManifest(path=str(path), tensors=_table(tensors), checksum=_checksum(path) if with_checksum else None)


def read_bucket(manifest: BucketManifest) -> dict[str, Tensor]:
    """The bucket's tensors on the CPU, in the manifest's order.

    They are mapped, not copied; they stay valid after `remove_bucket`, which gives the memory back when they are gone.

    Raises:
        WireError: no such file, not a safetensors file, another checksum, or other names, dtypes or shapes than the
            manifest's.
    """
    try:
        if manifest.checksum is not None and (found_sum := _checksum(Path(manifest.path))) != manifest.checksum:
            raise WireError(
                f"bucket {manifest.path} has checksum {found_sum:08x}, its manifest says {manifest.checksum:08x}: its "
                "bytes changed on the way; look at this machine's memory"
            )
        found = load_file(manifest.path)
    except (OSError, SafetensorError) as error:
        raise WireError(
            f"cannot read bucket {manifest.path}: {error}; was it removed before every engine had read it?"
        ) from error
    missing = tuple(sorted(manifest.tensors.keys() - found.keys()))
    unexpected = tuple(sorted(found.keys() - manifest.tensors.keys()))
    if missing or unexpected:
        raise WireError(
            f"bucket {manifest.path} is not its manifest's: missing {list(missing)}, unexpected {list(unexpected)}",
            missing,
            unexpected,
        )
    table = _table(found)
    for name, said in manifest.tensors.items():
        if table[name] != said:
            raise WireError(f"bucket {manifest.path}: {name} is {table[name]}, its manifest says {said}")
    return {name: found[name] for name in manifest.tensors}


def remove_bucket(manifest: BucketManifest) -> None:
    """Removes the bucket's file. Fine if it is gone already."""
    Path(manifest.path).unlink(missing_ok=True)


def _table(tensors: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: (str(tensors[name].dtype).removeprefix("torch."), tuple(tensors[name].shape)) for name in sorted(tensors)
    }


def _checksum(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return zlib.crc32(mapped)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU and contiguous; of tied ones, which safetensors refuses, all but the first copied."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        apart[name] = tensor
    return apart
