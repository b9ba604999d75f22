"""What travels of a weight bucket: a manifest, and its tensors' bytes by one of the carriers.

The sender (a Megatron rank, weights/plan.py) and the receiver (a vLLM worker, rollout/receive.py) agree on this file.
A manifest is plain JSON: it goes by RPC and says what is in the bucket, much like the header of a safetensors file, and
where the bytes are. Carriers: weights/shared_memory.py, weights/collective.py, weights/cuda_ipc.py.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: every tensor of a bucket starts at a multiple of this, whatever its dtype."""


class WireError(RuntimeError):
    """A bucket could not be sent or received, or is not what its manifest says."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a bucket: its dtype, such as "bfloat16", its shape, and where it starts, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Of its data."""
        return prod(self.shape) * getattr(torch, self.dtype).itemsize

    @property
    def end(self) -> int:
        """Where the next tensor may start."""
        return -(-(self.offset + self.num_bytes) // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, kw_only=True)
class BucketManifest:
    """What is in a bucket, and where its bytes are."""

    carrier: str
    bucket: str  # for messages: "bucket 3 of stage 0"
    place: dict[str, Any]  # the carrier's own, plain JSON
    tensors: dict[str, TensorSpec]  # by HF name
    checksum: int | None = None  # CRC-32 of the buffer, where asked for

    @property
    def num_bytes(self) -> int:
        """Of the tensors' data."""
        return sum(spec.num_bytes for spec in self.tensors.values())

    @property
    def buffer_bytes(self) -> int:
        """Of the buffer that they lie in."""
        return max((spec.end for spec in self.tensors.values()), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for an RPC."""
        tensors = {name: [spec.dtype, list(spec.shape), spec.offset] for name, spec in self.tensors.items()}
        return {
            "carrier": self.carrier,
            "bucket": self.bucket,
            "place": self.place,
            "tensors": tensors,
            "checksum": self.checksum,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "BucketManifest":
        """The inverse of `to_dict`.

        Raises:
            WireError: a key is missing or unknown, or a value has the wrong type.
        """
        kinds = {"carrier": str, "bucket": str, "place": dict, "tensors": dict, "checksum": int | None}
        wrong = sorted(kinds.keys() ^ plain.keys()) or [
            key for key, kind in kinds.items() if not isinstance(plain[key], kind)
        ]
        if wrong:
            raise WireError(
                f"bucket manifest {plain!r}: wrong at {', '.join(wrong)}; send what BucketManifest.to_dict gives"
            )
        tensors = {
            name: TensorSpec(dtype, tuple(shape), offset) for name, (dtype, shape, offset) in plain["tensors"].items()
        }
        return cls(**{**plain, "tensors": tensors})


class Sender(Protocol):
    """A rank's side of a carrier. What the driver and the planner must know of it beforehand: config/carriers.py."""

    @property
    def num_rounds(self) -> int:
        """How often `send` is called in a sync, `index` counting from 0, as far as this rank can tell."""

    def send(self, index: int, link: int) -> BucketManifest | None:
        """Puts bucket `index` of this rank's stage on the wire; its manifest, from the stage's leader.

        A collective of the ranks that hold the stage. Two buckets can be on the wire: `send(index + 2)` may come only
        when all receivers have loaded bucket `index`.

        Args:
            link: a number that changes when a receiver has been replaced, or a sync has failed.

        Raises:
            WireError: the bytes can't be sent.
        """

    def close(self) -> None:
        """Gives the carrier's memory and connections back."""


class Receiver(Protocol):
    """A vLLM worker's side of a carrier."""

    def receive(self, manifest: BucketManifest) -> dict[str, Tensor]:
        """The bucket's tensors by HF name, good until the next bucket of the same stage is received.

        Raises:
            WireError: the bytes don't come, or not as the manifest says.
        """

    def close(self) -> None:
        """Gives the carrier's memory and connections back."""


def lay_out(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, TensorSpec]:
    """Places the tensors of a bucket one after the other."""
    table, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        table[name] = TensorSpec(str(dtype).removeprefix("torch."), tuple(shape), offset)
        offset = table[name].end
    return table


def views(buffer: Tensor, tensors: dict[str, TensorSpec]) -> dict[str, Tensor]:
    """The tensors of a bucket that lie in `buffer` (uint8, one axis), without a copy.

    Raises:
        WireError: a tensor lies beyond the buffer's end.
    """
    found = {}
    for name, spec in tensors.items():
        end = spec.offset + spec.num_bytes
        if spec.offset < 0 or end > len(buffer):
            raise WireError(f"{name} ends at byte {end} of a buffer of {len(buffer)} bytes; the manifest is of another")
        found[name] = buffer[spec.offset : end].view(getattr(torch, spec.dtype)).view(spec.shape)
    return found
