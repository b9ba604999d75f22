"""Who runs where: Ray up and down, and the resources of every actor rank and engine.

On CPUs a rank or an engine is one of Ray's CPU slots on this machine. On GPUs actors and engines have GPUs of their own
(split placement), a tensor-parallel group packed on one node, or take turns on the actor's (colocated). Called by
train.py and cluster/workers.py.
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
    """Ray options of every process, from a reserved placement group.

    Args:
        first_engine: the bundle of the first engine, if engines have their own.
    """

    def __init__(self, config: Config, group: PlacementGroup, first_engine: int) -> None:
        self._config, self._group, self._first_engine = config, group, first_engine

    def actor_options(self, rank: int) -> dict[str, Any]:
        """Of an actor rank: bundle `rank`. Colocated, it leaves room for what else runs there."""
        return self._options(rank, *((0.4, 0.9) if self._config.is_colocated else (1, 1)))

    def engine_options(self, index: int) -> dict[str, Any]:
        """Of an engine: the bundles follow those of the actor ranks, or, colocated, are the ranks' own."""
        if self._config.is_colocated:
            return self._options(index * self._config.rollout.tp, 0.4, 0)
        return self._options(self._first_engine + index, 1, self._config.rollout.tp)

    def engine_environment(self, index: int) -> dict[str, str]:
        """Of an engine: colocated, the GPUs of its actor ranks, which Ray can't give twice."""
        if not self._config.is_colocated or self._config.cluster.device != "cuda":
            return {}
        tp = self._config.rollout.tp
        ranks = range(index * tp, (index + 1) * tp)
        places = ray.get([_node_and_gpu.options(**self._options(rank, 0.1, 0.1)).remote() for rank in ranks])
        if len({node for node, _ in places}) > 1:
            raise RuntimeError(f"engine {index} needs {tp} GPUs of one node; its actor ranks lie on {places}")
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpu for _, gpu in places)}

    def _options(self, bundle: int, cpus: float, gpus: float) -> dict[str, Any]:
        return {
            "num_cpus": cpus,
            "num_gpus": gpus if self._config.cluster.device == "cuda" else 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=bundle, placement_group_capture_child_tasks=False
            ),
        }


@contextmanager
def ray_cluster(config: Config, with_actors: bool = True) -> Iterator[Placement]:
    """Joins the Ray at RAY_ADDRESS, or starts a local one; reserves a place for every process; leaves none behind.

    Args:
        with_actors: False: for engines only, with places of their own.

    Raises:
        RuntimeError: the cluster hasn't got the resources, or not within cluster.start_timeout_s.
    """
    ranks = config.actor.world_size if with_actors else 0
    bundles = _bundles(config, ranks)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" not in os.environ:
        options |= {
            "address": "local",
            "num_cpus": len(bundles),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    try:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put in a handler that aborts the process
        group = placement_group(bundles, strategy="PACK")
        if not group.wait(config.cluster.start_timeout_s):
            raise RuntimeError(
                f"Ray cannot place {ranks} actor ranks and {config.rollout.engines} engines within "
                f"{config.cluster.start_timeout_s:g} s; it has {ray.cluster_resources()}"
            )
        yield Placement(config, group, first_engine=ranks)
    finally:
        ray.shutdown()


def _bundles(config: Config, ranks: int) -> list[dict[str, float]]:
    def bundle(gpus: int) -> dict[str, float]:
        return {"CPU": 1, "GPU": gpus} if config.cluster.device == "cuda" else {"CPU": 1}

    engines = [] if ranks and config.is_colocated else [bundle(config.rollout.tp)] * config.rollout.engines
    return [bundle(1)] * ranks + engines


@ray.remote
def _node_and_gpu() -> tuple[str, str]:
    return ray.get_runtime_context().get_node_id(), str(ray.get_gpu_ids()[0])
