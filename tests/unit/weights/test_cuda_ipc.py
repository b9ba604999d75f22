"""What a reader makes of handles of CUDA IPC; opening one needs a GPU (tests/gpu) and is played here."""

import pytest
import torch

from megatron_nft.weights import cuda_ipc
from megatron_nft.weights.wire import BucketManifest, WireError, lay_out


@pytest.fixture
def buffers(monkeypatch):
    """What lies behind each handle, and which have been opened."""
    behind = {f"{sender}{slot}": torch.full((64,), slot, dtype=torch.uint8) for sender in "ab" for slot in (0, 1)}
    opened = []
    monkeypatch.setattr(cuda_ipc, "_uuid", lambda: "GPU-1")
    monkeypatch.setattr(cuda_ipc, "_open", lambda handle: opened.append(handle) or behind[handle])
    return opened


def manifest(sender, index, *, with_handles=True, gpu="GPU-1"):
    slot = index % 2
    place = {"sender": sender, "slot": slot, "handles": {gpu: f"{sender}{slot}"} if with_handles else {}}
    tensors = lay_out({"w": (torch.uint8, (4,))})
    return BucketManifest(carrier="cuda_ipc", bucket=f"bucket {index} of stage 0", place=place, tensors=tensors)


def test_handles_come_with_the_first_two_buckets_only(buffers):
    receiver = cuda_ipc.CudaIpcReceiver()
    for _ in range(2):  # syncs
        for index in range(5):
            found = receiver.receive(manifest("a", index, with_handles=index < 2))
            assert found["w"].tolist() == [index % 2] * 4
    assert buffers == ["a0", "a1"]


def test_other_ranks_have_other_buffers(buffers):
    receiver = cuda_ipc.CudaIpcReceiver()
    receiver.receive(manifest("a", 0))
    receiver.receive(manifest("b", 0))
    assert buffers == ["a0", "b0"]
    with pytest.raises(WireError, match=r"handle of buffer 1 has not come; begin the sync again"):
        receiver.receive(manifest("b", 1, with_handles=False))


def test_a_gpu_without_a_rank_is_named(buffers):
    with pytest.raises(WireError, match=r"no actor rank is on this engine's GPU GPU-1, only on .'GPU-7'."):
        cuda_ipc.CudaIpcReceiver().receive(manifest("a", 0, gpu="GPU-7"))
