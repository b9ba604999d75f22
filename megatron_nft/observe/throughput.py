"""What a step's counts and seconds come to per second and per device, and how long its answers are.

Metrics and judged groups of a step come in, derived metrics go out. Called by `observe.report` at a step's end.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from megatron_nft.config import Config
from megatron_nft.types import RolloutGroup

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
OF_A_KIND = ("p10", "p50", "p90")
"""Of right and of wrong answers; too few are one kind in a step for more."""


def num_devices(config: Config) -> tuple[int, int, int]:
    """GPUs (on a CPU: processes) that sample, that train, and of the whole run."""
    workers, ranks = config.rollout.engines * config.rollout.tp, config.actor.world_size
    return workers, ranks, max(workers, ranks) if config.is_colocated else workers + ranks


def throughput(metrics: Mapping[str, float], config: Config, minutes: float) -> dict[str, float]:
    """The perf/ metrics that follow from a step's others, less those that the caller has measured.

    Args:
        minutes: that the run has taken, at the step's end.
    """
    sampling, training, all_devices = num_devices(config)
    # Ahead of the trainer there is no rollout stage: engines sample all the time.
    rollout_s = metrics.get("time/rollout_s", 0.0 if "time/wait_s" not in metrics else metrics.get("time/step_s", 0.0))
    found = {"perf/gpu_hours": minutes / 60 * all_devices}
    sampled = metrics.get("rollout/answers", 0) * metrics.get("rollout/answer_tokens_mean", 0)
    for name, tokens, seconds, devices in (
        ("rollout", sampled, rollout_s, sampling),
        ("train", metrics.get("actor/tokens", 0), metrics.get("time/train_s", 0.0), training),
    ):
        if tokens and seconds:
            found[f"perf/{name}_tokens_per_s"] = tokens / seconds
            found[f"perf/{name}_tokens_per_s_per_gpu"] = tokens / seconds / devices
    return {name: value for name, value in found.items() if name not in metrics}


def length_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Quantiles of the answers' lengths: of all, of those graded right and wrong. A truncated one is wrong."""
    lengths = [len(rollout.token_ids_A) for group in groups for rollout in group.rollouts]
    right, wrong = [], []
    for group in (group.graded for group in groups):
        for rollout, is_right in zip(group.rollouts, group.rights, strict=True):
            (right if is_right else wrong).append(len(rollout.token_ids_A))
    return {
        **_quantiles("rollout/answer_tokens", lengths, QUANTILES),
        **_quantiles("rollout/right_tokens", right, OF_A_KIND),
        **_quantiles("rollout/wrong_tokens", wrong, OF_A_KIND),
    }


def _quantiles(name: str, lengths: Sequence[int], wanted: Iterable[str]) -> dict[str, float]:
    if not lengths:
        return {}
    return {f"{name}_{q}": float(np.quantile(lengths, QUANTILES[q])) for q in wanted}
