"""Who runs where: Ray up and down, and the resources of every actor rank and engine.

On CPUs a rank or an engine is one of Ray's CPU slots on this machine. On GPUs actors and engines have GPUs of their own
(split placement), a tensor-parallel group packed on one node. Called by train.py and cluster/workers.py.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from megatron_nft.config import Config

OBJECT_STORE_BYTES = 256 << 20
"""Of a local Ray: batches of token ids pass through it, weights don't."""


class Placement:
    """Ray options of every process, from a reserved placement group."""

    def __init__(self, config: Config, group: PlacementGroup) -> None:
        self._config, self._group = config, group

    def actor_options(self, rank: int) -> dict[str, Any]:
        """Of an actor rank: bundle `rank`."""
        return self._options(rank, gpus=1)

    def engine_options(self, index: int) -> dict[str, Any]:
        """Of an engine: the bundles follow those of the actor ranks."""
        return self._options(self._config.actor.world_size + index, gpus=self._config.rollout.tp)

    def _options(self, bundle: int, gpus: int) -> dict[str, Any]:
        return {
            "num_cpus": 1,
            "num_gpus": gpus if self._config.cluster.device == "cuda" else 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=bundle, placement_group_capture_child_tasks=False
            ),
        }


@contextmanager
def ray_cluster(config: Config) -> Iterator[Placement]:
    """Joins the Ray at RAY_ADDRESS, or starts a local one; reserves a place for every process; leaves none behind.

    Raises:
        RuntimeError: the cluster hasn't got the resources, or not within cluster.start_timeout_s.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" not in os.environ:
        options |= {
            "address": "local",
            "num_cpus": config.actor.world_size + config.rollout.engines,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    try:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put in a handler that aborts the process
        group = placement_group(_bundles(config), strategy="PACK")
        if not group.wait(config.cluster.start_timeout_s):
            raise RuntimeError(
                f"Ray cannot place {config.actor.world_size} actor ranks and {config.rollout.engines} engines within "
                f"{config.cluster.start_timeout_s:g} s; it has {ray.cluster_resources()}"
            )
        yield Placement(config, group)
    finally:
        ray.shutdown()


def _bundles(config: Config) -> list[dict[str, float]]:
    def bundle(gpus: int) -> dict[str, float]:
        return {"CPU": 1, "GPU": gpus} if config.cluster.device == "cuda" else {"CPU": 1}

    return [bundle(1)] * config.actor.world_size + [bundle(config.rollout.tp)] * config.rollout.engines
