"""The CUDA branches: NCCL, TransformerEngine layers, vLLM on a GPU. Skipped, with the reason, where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_nft.actor.precision import PrecisionError, check_device
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from megatron_nft.observe.batches import load_batch
from tests.parallel.ranks import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
ASSETS = Path("tests/assets/quickstart")


def train_on_cuda(rank, master, overrides):
    from megatron_nft.actor.worker import Worker

    config = load_config("launch/recipes/quickstart.toml", ["actor.tp=1", "cluster.device=cuda", *overrides])
    worker = Worker(config, rank=rank, master=master)
    batch = pack(load_batch(ASSETS / "batch.npz")[:1], num_updates=1, dp=1, tokens_per_microbatch=4096)
    microbatches = batch.updates[0][0]
    scores = worker.score(microbatches)
    metrics = worker.train_step([microbatches])
    worker.shutdown()
    sequences = [s for m in microbatches for s in m.sequences]
    return max(np.abs(x - s.old_logprobs_A).mean() for x, s in zip(scores, sequences, strict=True)), metrics


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("fp32", 1e-2), ("bf16", 0.1), ("fp8-delayed", 0.3), ("fp8-tensorwise", 0.3), ("fp8-blockwise", 0.3)],
)
def test_actor_scores_and_trains_with_transformer_engine(precision, tolerance):
    """The stored log-probs come from local layers in fp32 on a CPU. TF32, BF16 and FP8 explain the tolerance."""
    try:
        check_device(precision, torch.cuda.get_device_capability(), torch.cuda.get_device_name())
    except PrecisionError as error:
        pytest.skip(str(error))
    ((gap, metrics),) = run_ranks(1, train_on_cuda, [f"actor.precision={precision}"])
    assert gap < tolerance
    assert np.isfinite(metrics["nft/loss"]) and metrics["actor/grad_norm"] > 0
