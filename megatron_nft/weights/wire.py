"""A weight bucket on its way from one process to another on the same machine.

Named tensors come in at the sender (weights/gather), the same tensors come out at the receiver (rollout/receive). The
data lies in a safetensors file in a folder of the caller's choice, usually in shared memory; only a small
`BucketManifest` travels by RPC. Imports torch and safetensors only, so that both sides may import it.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    names: tuple[str, ...]  # HF names, sorted
    num_bytes: int  # of the tensors' data, without the file's header

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for an RPC."""
        return {"path": self.path, "names": list(self.names), "num_bytes": self.num_bytes}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "BucketManifest":
        """The inverse of `to_dict`.

        Raises:
            WireError: a key is missing or unknown, or a value has the wrong type.
        """
        kinds = {"path": str, "names": list, "num_bytes": int}
        wrong = sorted(kinds.keys() ^ plain.keys()) or [
            k for k, kind in kinds.items() if not isinstance(plain[k], kind)
        ]
        if wrong:
            raise WireError(
                f"bucket manifest {plain!r}: wrong at {', '.join(wrong)}; send what BucketManifest.to_dict gives"
            )
        return cls(path=plain["path"], names=tuple(plain["names"]), num_bytes=plain["num_bytes"])


def write_bucket(folder: str | Path, index: int, tensors: dict[str, Tensor]) -> BucketManifest:
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
        need = sum(_num_bytes(t) for t in tensors.values()) / 2**20
        raise WireError(
            f"cannot write bucket {index} ({need:.0f} MiB) to {folder}: {error}; give an existing folder with room for "
            "two buckets, or lower weights.bucket_mib"
        ) from error
    return BucketManifest(
        path=str(path), names=tuple(sorted(tensors)), num_bytes=sum(_num_bytes(t) for t in tensors.values())
    )


def read_bucket(manifest: BucketManifest) -> dict[str, Tensor]:
    """The bucket's tensors on the CPU, in the manifest's order.

    They are mapped, not copied; they stay valid after `remove_bucket`, which gives the memory back when they are gone.

    Raises:
        WireError: no such file, not a safetensors file, or other names or another size than the manifest's.
    """
    try:
        found = load_file(manifest.path)
    except (OSError, SafetensorError) as error:
        raise WireError(
            f"cannot read bucket {manifest.path}: {error}; was it removed before every engine had read it?"
        ) from error
    missing = tuple(sorted(set(manifest.names) - found.keys()))
    unexpected = tuple(sorted(found.keys() - set(manifest.names)))
    if missing or unexpected:
        raise WireError(
            f"bucket {manifest.path} is not its manifest's: missing {list(missing)}, unexpected {list(unexpected)}",
            missing,
            unexpected,
        )
    num_bytes = sum(_num_bytes(t) for t in found.values())
    if num_bytes != manifest.num_bytes:
        raise WireError(
            f"bucket {manifest.path} holds {num_bytes} bytes of tensors, its manifest says {manifest.num_bytes}"
        )
    return {name: found[name] for name in manifest.names}


def remove_bucket(manifest: BucketManifest) -> None:
    """Removes the bucket's file. Fine if it is gone already."""
    Path(manifest.path).unlink(missing_ok=True)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


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
