"""Colocated: what an actor rank leaves the engines, on real Megatron."""

import pytest

from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel


def gradient_bytes(rank, master):
    """Before, after `offload`, after `reload`, and after an `offload` more."""
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config

    worker = Worker(load_config("launch/recipes/quickstart.toml", []), rank=rank, master=master)

    def held():
        return sum(buffer.grad_data.untyped_storage().nbytes() for chunk in worker.model for buffer in chunk.buffers)

    found = [held()]
    for verb in (worker.offload, worker.reload, worker.offload, worker.offload):
        verb()
        found.append(held())
    worker.shutdown()
    return found


def test_gradients_leave_with_an_offload_and_come_back():
    for full, *others in run_ranks(2, gradient_bytes):
        assert full > 1_000_000 and others == [0, full, 0, 0]
