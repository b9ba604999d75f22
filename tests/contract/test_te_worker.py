"""A whole Worker on a played H100, TransformerEngine's modules computed by their documented meaning: its log-probs are
the stored ones, every metric is a plain number, a checkpoint goes on bit by bit, in this process and in a fresh one.
"""

import numpy as np
import pytest

from tests.contract.workers import another_run, devices_after_an_offload, first_run
from tests.parallel.ranks import run_ranks

STAGE = "tests.contract.played"
FP32, BF16 = "actor.precision=fp32", "actor.precision=bf16"
SP = ("actor.tp=2", "actor.sequence_parallel=true")
GAPS = {FP32: 1e-5, BF16: 0.02}
"""Largest mean difference of log-probs from the stored ones, in nats; FP8's casts inside products are not played."""
GRAD_NORM = 0.226211
"""Of the first update, by local layers in fp32 on a CPU, with megatron-core 0.16.1."""
CASES = {
    "fp32": (1, FP32),
    "fp32 tp 2": (2, FP32, *SP),
    "fp32 cp 2": (2, FP32, "actor.cp=2"),
    "fp32 pp 2 vpp 2": (2, FP32, "actor.pp=2", "actor.vpp=2"),
    "fp32 dp 2, overlaps": (2, FP32, "actor.dp=2", "actor.overlap_grad_reduce=true", "actor.overlap_param_gather=true"),
    "bf16, entropy, selective": (1, BF16, "observe.entropy=true", "actor.recompute=selective"),
    "bf16, offloading": (1, BF16, 'actor.offload_modules=["mlp_norm", "core_attn"]', "actor.deterministic=true"),
    "fp8-delayed": (1, "actor.precision=fp8-delayed"),
    "fp8-delayed tp 2": (2, "actor.precision=fp8-delayed", *SP),
    "fp8-tensorwise, edges in bf16": (
        1,
        "actor.precision=fp8-tensorwise",
        "actor.num_layers_at_start_in_bf16=1",
        "actor.num_layers_at_end_in_bf16=1",
    ),
    "fp8-blockwise": (1, "actor.precision=fp8-blockwise"),
    "fp8-tensorwise parameters dp 2": (2, "actor.precision=fp8-tensorwise", "actor.fp8_param=true", "actor.dp=2"),
    "fp8-blockwise parameters": (1, "actor.precision=fp8-blockwise", "actor.fp8_param=true"),
    "fp8-delayed parameters": (1, "actor.precision=fp8-delayed", "actor.fp8_param=true"),
}


def one(values):
    """What one rank has, the others being None, or all having the same."""
    return next(value for value in values if value is not None)


@pytest.mark.parametrize("case", CASES)
def test_a_worker_scores_updates_saves_and_goes_on(case, tmp_path):
    world_size, *overrides = CASES[case]
    ranks = run_ranks(world_size, first_run, overrides, str(tmp_path), stage=STAGE)
    fresh = run_ranks(world_size, another_run, overrides, str(tmp_path), stage=STAGE)

    scoring = [rank for rank in ranks if rank["scores"] is not None]
    gap = np.mean([np.abs(rank["scores"] - rank["stored"]).mean() for rank in scoring])
    has_fp8_weights = "actor.fp8_param=true" in overrides
    assert gap < (0.5 if has_fp8_weights else GAPS.get(overrides[0], GAPS[BF16]))

    metrics = one(rank["metrics"] for rank in ranks)
    assert {name: type(value) for name, value in metrics.items()} == dict.fromkeys(metrics, float)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["actor/nonfinite_updates"] == 0
    # The same in every layout and format: a shard's marks, its reduction and its share of the norm are right.
    tolerance = 1e-4 if overrides[0] == FP32 else 0.5 if has_fp8_weights else 0.05
    assert metrics["actor/grad_norm"] == pytest.approx(GRAD_NORM, rel=tolerance)

    for rank, again in zip((*ranks, *ranks), (*ranks, *fresh), strict=True):
        (metrics, scores), (metrics_again, scores_again) = rank["straight"], again["resumed"]
        if has_fp8_weights and "fp8-tensorwise" not in overrides[0]:
            # A checkpoint has these weights as bf16; quantized anew, by other scales than an update's, they are near.
            assert metrics_again["nft/loss"] == pytest.approx(metrics["nft/loss"], abs=0.01)
            assert scores is scores_again is None or np.abs(scores_again - scores).mean() < 0.5
            continue
        assert metrics_again == metrics
        assert scores is scores_again is None or np.array_equal(scores_again, scores)
    is_deterministic = "actor.deterministic=true" in overrides
    assert all(rank["deterministic"] == {(is_deterministic, is_deterministic)} for rank in ranks)
    if "fp8-delayed" in overrides[0]:
        for rank, again in zip(ranks, fresh, strict=True):
            assert rank["scales"] and again["scales"].keys() == rank["scales"].keys()
            assert all(np.array_equal(again["scales"][name], value) for name, value in rank["scales"].items())


def test_what_is_updated_on_the_host_stays_there():
    ((before, after),) = run_ranks(1, devices_after_an_offload, stage=STAGE)
    assert before == after == {"cpu"}


def smoke(rank, master, deterministic, noise):
    """All checks of the smoke command; their names, and whether they passed."""
    import os
    from types import SimpleNamespace

    from megatron_nft.config import ActorConfig
    from megatron_nft.smoke import checks
    from megatron_nft.smoke.__main__ import parser
    from megatron_nft.smoke.inputs import MODEL, make_config, make_sequences
    from tests.contract import layers

    os.environ |= {"MASTER_ADDR": master.split(":")[0], "MASTER_PORT": master.split(":")[1]}
    layers.NOISE = noise
    checks.product_flops, checks.TIMED_STEPS = lambda *arguments: 1.0, 1
    arguments = parser().parse_args(["--precision", "bf16", *(["--deterministic"] if deterministic else [])])
    arguments.model = MODEL
    config = make_config(arguments, 1, "cuda")
    assert config.actor == ActorConfig(tokens_per_microbatch=1024, deterministic=deterministic)
    found = {}
    checks.Smoke.check = lambda self, name, passed, words: found.update({name: passed})
    checks.check_install(config, make_sequences(MODEL, None), SimpleNamespace(say=print))
    return found


@pytest.mark.parametrize(("deterministic", "noise"), [(False, 0.01), (True, 0.0), (True, 0.01)])
def test_smoke_asks_of_a_resumed_run_what_a_gpu_can_promise(deterministic, noise):
    """The noise is attention's, whose kernels add up in an order of chance unless they are told not to."""
    (found,) = run_ranks(1, smoke, deterministic, noise, stage=STAGE)
    assert len(found) == 5
    assert found.pop("resumed from a checkpoint") == (not deterministic or noise == 0.0)
    assert all(found.values())


def cpu_recipe(rank, master):
    """In the GPU's environment, on a machine without a GPU, nothing played."""
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config
    from megatron_nft.data.packing import pack
    from megatron_nft.observe.batches import load_batch

    worker = Worker(load_config("launch/recipes/quickstart.toml", ["actor.tp=1"]), rank=rank, master=master)
    stored = [load_batch("tests/assets/quickstart/batch.npz")[0][:8]]
    (update,) = pack(stored, num_updates=1, dp=1, tokens_per_microbatch=2048).updates
    metrics = worker.train_step([update[0]])
    worker.shutdown()
    return metrics


def test_a_cpu_recipe_in_the_gpus_environment():
    (metrics,) = run_ranks(1, cpu_recipe)
    assert metrics["actor/grad_norm"] > 0
