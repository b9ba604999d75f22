"""Weights over CUDA IPC and NCCL between two processes, bit for bit, with GB/s beside a device-to-device copy.

The rates are printed (pytest -s): on one GPU for CUDA IPC, on two for NCCL, which joins no two processes of one GPU.
"""

import time

import pytest
import torch

from tests.parallel.families import make_folder
from tests.parallel.trainer import trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def received(tmp_path, carrier, device, overrides):
    """GB/s of five syncs of a folder's weights, received on `device` and compared bit for bit, and of a copy there."""
    from safetensors.torch import load_file

    from megatron_nft.weights.carriers import make_receiver

    folder = make_folder("qwen2 tied", "bfloat16", 0, tmp_path / "model")
    expected = {name: tensor.to(device) for name, tensor in load_file(folder / "model.safetensors").items()}
    recipe = [f"model.path={folder}", "actor.tp=1", "actor.precision=bf16", "rollout.dtype=bfloat16",
              "cluster.device=cuda", f"weights.carrier={carrier}", "weights.bucket_mib=1", *overrides]  # fmt: skip
    torch.cuda.set_device(device)
    receiver = make_receiver(carrier, 0, device)
    seconds = num_bytes = 0
    with trainer(tmp_path, recipe) as actor:
        for _ in range(5):
            start, arrived, num_bytes = time.perf_counter(), set(), 0
            for index in range(actor.num_rounds):
                for manifest in actor.begin_send(index, 0).wait():
                    for name, tensor in receiver.receive(manifest).items():
                        assert torch.equal(tensor, expected[name]), name
                        arrived.add(name)
                    num_bytes += manifest.num_bytes
            assert arrived == set(expected)
            seconds = time.perf_counter() - start
    receiver.close()
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    start = time.perf_counter()
    source.clone()
    torch.cuda.synchronize()
    print(f"{carrier}: {num_bytes / 1e9 / seconds:.2f} GB/s, a copy on the device: "
          f"{num_bytes / 1e9 / (time.perf_counter() - start):.2f} GB/s")  # fmt: skip


def test_cuda_ipc(tmp_path):
    received(tmp_path, "cuda_ipc", torch.device("cuda:0"), ["cluster.placement=colocated"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL between two processes needs two CUDA devices")
def test_nccl(tmp_path):
    received(tmp_path, "collective", torch.device("cuda:1"), [])
