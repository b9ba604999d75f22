"""A training step of a published run's layer shapes: TFLOP/s, share of the peak, memory; the planner's figures beside.

python -m tests.gpu.prove.step 7b bf16
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from megatron_nft.actor.precision import PrecisionError, check_device
from megatron_nft.actor.topology import free_address
from megatron_nft.config import Config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.plan.hardware import GIB, Machine, load_machine
from megatron_nft.plan.planner import Plan, make_plan
from megatron_nft.plan.workload import Assumptions
from megatron_nft.smoke.speed import model_flops, peak_gib
from tests.gpu.prove.models import device, make_batch, make_model, recipe, synchronize
from tests.gpu.prove.report import figure, is_dry

STEPS = 3
KNOWN = ("H100", "H200", "B200", "A100")


def machine() -> Machine:
    """The hardware table of this device, without what the planner adds for ranks that wait for one another."""
    name = "cpu" if is_dry() else next((k for k in KNOWN if k in torch.cuda.get_device_name()), "H100")
    found = load_machine(name)
    return replace(found, efficiency=replace(found.efficiency, imbalance=1.0))


def planned(config: Config) -> Plan:
    tokens = {"prompt_tokens": config.data.max_prompt_tokens, "answer_tokens": config.rollout.max_answer_tokens}
    every = Assumptions(**tokens, answer_spread=1e-3, mixed_share=1.0)
    return make_plan(config, read_hf_config(config.model.path), machine(), every)


def main(shape: str, precision: str) -> None:
    if not is_dry():
        try:
            check_device(precision, torch.cuda.get_device_capability(), torch.cuda.get_device_name())
        except PrecisionError as error:
            figure(f"{shape} {precision}", "skipped", note=str(error))
            return
    from megatron_nft.actor.worker import Worker

    with tempfile.TemporaryDirectory() as scratch:
        config = recipe(make_model(shape, Path(scratch) / "model"), f"actor.precision={precision}")
        start = time.perf_counter()
        worker = Worker(config, rank=0, master=free_address())
        figure("ready after", time.perf_counter() - start, "s")
        batch = make_batch(config)
        seconds = [_timed(lambda: worker.train_step([batch])) for _ in range(1 + STEPS)]
        plan, second = planned(config), statistics.median(seconds[1:])
        sequences = [s for microbatch in batch for s in microbatch.sequences]
        flops = model_flops(worker.hf, sequences) / second
        named = machine()
        peak = (named.fp8_tflops if precision.startswith("fp8") else named.bf16_tflops) * 1e12
        figure("first step", seconds[0], "s", "kernels are chosen and compiled")
        train = next(stage.seconds for stage in plan.stages if stage.name == "train")
        figure("step", second, "s", f"planned {train:.3g}, {second / train:.2f} times that; 2 layers")
        figure("model TFLOP/s", flops / 1e12, "", f"{flops / peak:.1%} of {named.name}'s peak in this format")
        figure("tokens/s", sum(s.num_tokens for s in sequences) / second)
        memory = plan.memory.worst("train")
        assert memory is not None
        held = sum(size for name, size in memory.parts.items() if name not in ("CUDA and NCCL", "buckets")) / GIB
        figure("tensors at the peak", peak_gib(device()), "GiB", f"planned {held:.3g} without CUDA, NCCL and buckets")
        _timed(lambda: worker.score(batch))
        figure("scoring", _timed(lambda: worker.score(batch)), "s", "forward pass and log-probs alone")
        worker.shutdown()


def _timed(work) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(*sys.argv[1:])
