"""Buckets in shared memory without a trainer: what a sender would put there, tensor by tensor."""

import os

import torch

from megatron_nft.weights.shared_memory import CARRIER, _checksum, _map
from megatron_nft.weights.wire import BucketManifest, lay_out, views


class Buckets:
    """Two buffers that the buckets are written to in turn."""

    def __init__(self) -> None:
        self.files = [os.memfd_create(f"test-{slot}") for slot in range(2)]
        self.count = 0

    def write(self, tensors: dict[str, torch.Tensor], *, checksum: bool = False) -> BucketManifest:
        """HF name -> tensor -> a bucket that is ready to be received."""
        table = lay_out({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
        manifest = BucketManifest(
            carrier=CARRIER,
            bucket=f"bucket {self.count} of stage 0",
            place={"path": f"/proc/{os.getpid()}/fd/{self.files[self.count % 2]}"},
            tensors=table,
        )
        os.truncate(self.files[self.count % 2], manifest.buffer_bytes)
        buffer = self.buffer(manifest)
        for name, view in views(buffer, table).items():
            view.copy_(tensors[name])
        self.count += 1
        return BucketManifest(**(vars(manifest) | {"checksum": _checksum(buffer) if checksum else None}))

    @staticmethod
    def buffer(manifest: BucketManifest) -> torch.Tensor:
        """The bucket's bytes, to be written."""
        return _map(manifest.place["path"], manifest.buffer_bytes, writable=True)

    def close(self) -> None:
        """The sender ends."""
        for file in self.files:
            os.close(file)
