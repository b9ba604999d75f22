"""The CUDA branches: NCCL, TransformerEngine layers, vLLM on a GPU. Skipped, with the reason, where there is none."""

import os
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
    if scores is None:
        return None, metrics
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


def save_and_go_on(rank, master, folder):
    """The update after a save, straight on and resumed: a copy from the GPU is what a thread has written."""
    from megatron_nft.actor.worker import Worker

    config = load_config(
        "launch/recipes/quickstart.toml", ["actor.tp=1", "actor.precision=bf16", "cluster.device=cuda"]
    )
    worker = Worker(config, rank=rank, master=master)
    batch = pack(load_batch(ASSETS / "batch.npz")[:2], num_updates=2, dp=1, tokens_per_microbatch=4096)
    first, second = (update[0] for update in batch.updates)
    worker.train_step([first])
    worker.begin_save(folder, 1, 1)
    straight = worker.train_step([second]), worker.score(second)
    worker.finish_save()
    worker.load(folder)
    return straight, (worker.train_step([second]), worker.score(second))


def test_a_resumed_run_on_cuda(tmp_path):
    ((straight, resumed),) = run_ranks(1, save_and_go_on, str(tmp_path))
    assert resumed[0]["actor/grad_norm"] == pytest.approx(straight[0]["actor/grad_norm"], rel=1e-3)
    assert max(np.abs(x - y).max() for x, y in zip(straight[1], resumed[1], strict=True)) < 1e-2


SWITCHES = [
    ["actor.gradient_accumulation_fusion=true"],
    ['actor.offload_modules=["mlp_norm", "core_attn"]'],
    ["actor.cpu_offloading_num_layers=2"],
    ["optimizer.optimizer_cpu_offload=true"],
    ["actor.overlap_grad_reduce=true", "actor.overlap_param_gather=true"],
]


@pytest.mark.parametrize("switches", SWITCHES, ids=" ".join)
def test_performance_settings_change_no_result(switches):
    ((_, plain),) = run_ranks(1, train_on_cuda, ["actor.precision=bf16"])
    ((_, metrics),) = run_ranks(1, train_on_cuda, ["actor.precision=bf16", *switches])
    assert metrics["nft/loss"] == pytest.approx(plain["nft/loss"], rel=1e-3, abs=1e-5)
    assert metrics["actor/grad_norm"] == pytest.approx(plain["actor/grad_norm"], rel=1e-2)


def test_fp8_parameters_start_from_the_folder():
    ((gap, metrics),) = run_ranks(1, train_on_cuda, ["actor.precision=fp8-tensorwise", "actor.fp8_param=true"])
    assert gap < 0.3 and np.isfinite(metrics["nft/loss"])


def train_on_own_device(rank, master, overrides):
    os.environ["LOCAL_RANK"] = str(rank)
    return train_on_cuda(rank, master, overrides)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="tensor parallelism over NCCL needs two CUDA devices")
@pytest.mark.parametrize("overlap", ["false", "true"])
def test_tensor_parallel_ranks_on_two_devices(overlap):
    """With tp_comm_overlap, too: the messages travel during the products."""
    layout = ["actor.tp=2", "actor.sequence_parallel=true", f"actor.tp_comm_overlap={overlap}"]
    ranks = run_ranks(2, train_on_own_device, ["actor.precision=bf16", *layout])
    assert ranks[0][0] < 0.1 and ranks[0][1]["actor/grad_norm"] > 0


def test_blockwise_log_probs_on_cuda():
    """In bf16, beside torch's log_softmax of the whole vocabulary in fp32, with the memory that both take."""
    ((gap, share),) = run_ranks(1, log_probs_on_cuda)
    assert gap < 0.05 and share < 0.5


def log_probs_on_cuda(rank, master):
    import torch.distributed as dist

    from megatron_nft.actor.logprobs import label_logprobs

    dist.init_process_group("nccl", init_method=f"tcp://{master}", rank=0, world_size=1)
    torch.manual_seed(0)
    hidden = torch.randn(4096, 896, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(151_936, 896, device="cuda") / 30).bfloat16().requires_grad_()
    labels = torch.randint(0, len(weight), (4096,), device="cuda")

    def peak(logprobs_of):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        logprobs = logprobs_of()
        logprobs.sum().backward()
        hidden.grad = weight.grad = None
        return logprobs.detach(), torch.cuda.max_memory_allocated() - before

    setting = {"temperature": 1.0, "vocab_size": len(weight), "group": dist.group.WORLD, "logits_bytes": 128 << 20}
    mine, taken = peak(lambda: label_logprobs(hidden, weight, labels, **setting)[0])
    whole, whole_taken = peak(
        lambda: torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, labels[:, None])[:, 0]
    )
    dist.destroy_process_group()
    return (mine - whole).abs().max().item(), taken / whole_taken
