"""What a step has taken: operations per second and their share of the peak, memory by phase, how full engines were.

A trained batch and the processes' own notes (cluster/usage.py) come in; metrics go out, and spans into the report's
timeline. Called by `Run.measured`, once a step.
"""

from collections.abc import Iterator, Mapping, Sequence

from megatron_nft.cluster.usage import GIB, Usage, host_now_bytes
from megatron_nft.config import Config
from megatron_nft.families.flops import training_flops
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.observe.timeline import Timeline
from megatron_nft.plan.hardware import SHIPPED_NAMES, load_machine
from megatron_nft.rollout.api import DecodeSteps
from megatron_nft.types import TrainBatch

PHASES = {
    "advance": "rollout",
    "score": "score",
    "score_reference": "score",
    "train_step": "train",
    "begin_save": "checkpoint",
    "send_bucket": "sync",
    "start_update": "sync",
    "update": "sync",
    "finish_update": "sync",
}
"""Verb -> the phase whose memory and time it is. Others belong to none."""
STREAM = "rollouts"
"""Of groups/source.py; evaluations are counted apart, and not told."""


def training_speed(batch: TrainBatch, hf: HFConfig, config: Config, seconds: float, device: str) -> dict[str, float]:
    """Model operations per second and device of a step's updates, and their share of the device's peak.

    Args:
        seconds: that the updates took.
        device: the GPU's name; empty: a CPU.
    """
    if seconds <= 0:
        return {}
    lengths = ((s.num_tokens, s.num_answer_tokens) for s in batch.sequences)
    flops = training_flops(hf, lengths, is_frozen=bool(config.lora.rank))
    per_device = flops / seconds / config.actor.world_size
    speed = {"perf/train_tflops_per_gpu": per_device / 1e12}
    if (peak := peak_flops(config, device)) is not None:
        speed["perf/mfu"] = per_device / peak
    return speed


def peak_flops(config: Config, device: str) -> float | None:
    """Of a rank's device, as plan/hardware.toml has it; None: it doesn't know the device."""
    if config.cluster.device == "cpu":
        return load_machine("cpu").bf16_tflops * 1e12 * config.cluster.threads_per_process
    name = next((name for name in SHIPPED_NAMES if name in device), None)
    return None if name is None else load_machine(name).bf16_tflops * 1e12


def memory(usages: Sequence[Usage]) -> dict[str, float]:
    """Peaks by phase, of the fullest process; and what the driver holds now."""
    found: dict[str, float] = {"memory/host_driver_gib": host_now_bytes() / GIB}
    for usage in usages:
        for place, peaks in (("host", usage.host_gib), ("gpu", usage.gpu_gib)):
            for verb, gib in peaks.items():
                if verb in PHASES:
                    name = f"memory/{place}_{PHASES[verb]}_gib"
                    found[name] = max(found.get(name, 0.0), gib)
    return found


def engine_load(usages: Sequence[Usage]) -> dict[str, float]:
    """Of the engines' decode steps for rollouts."""
    found: list[DecodeSteps] = [u.more[STREAM] for u in usages if STREAM in u.more]
    if not (steps := sum(each.steps for each in found)):
        return {}
    return {
        "engine/running_mean": sum(each.running for each in found) / steps,
        "engine/waiting_mean": sum(each.waiting for each in found) / steps,
        "engine/kv_use_mean": sum(each.kv_use for each in found) / steps,
        "engine/kv_use_max": max(each.kv_use_max for each in found),
    }


def note_spans(timeline: Timeline, usages: Mapping[str, Usage]) -> None:
    """What the processes did, into the timeline, by phase."""
    for name, usage in usages.items():
        timeline.add_of_others(name, _by_phase(usage))


def _by_phase(usage: Usage) -> Iterator[tuple[str, float, float]]:
    for verb, start, end in usage.spans:
        yield PHASES.get(verb, verb), start, end
