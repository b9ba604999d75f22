"""Who runs where: Ray up and down, and the resources of every actor rank and engine.

On CPUs a rank or an engine is one of Ray's CPU slots. On GPUs actors and engines have GPUs of their own (split
placement), or take turns on the actor's (colocated). A tensor-parallel group, of the actor or of an engine, lies on one
node; ranks that follow each other lie on the same node or on neighbours. Called by run/parts.py, ranks.py and fleet.py.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import lcm
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from megatron_nft.cluster.nodes import ClusterError, Node, living_nodes
from megatron_nft.config import Config
from megatron_nft.doctor.machine import Machine
from megatron_nft.doctor.ray_needs import check_ray, is_local

OBJECT_STORE_BYTES = 256 << 20
"""Of a local Ray: batches of token ids pass through it, weights don't."""
HEAD_GONE_S = 20
"""A local Ray's head that doesn't answer for so long is dead: driver, ranks and engines end. Ray's own 60 s are for a
network between them; the ranks wait as long again after the driver, and would hold their memory against a new start."""


class Placement:
    """Ray options of every process, from reserved placement groups."""

    def __init__(self, config: Config, blocks: list[PlacementGroup], engines: PlacementGroup | None) -> None:
        """
        Args:
            blocks: of the actor ranks, `ranks_per_block` each; a bundle a rank.
            engines: a bundle an engine; None if they are on the ranks' own.
        """
        self._config, self._blocks, self._engines = config, blocks, engines
        self._asked: dict[int, list[Any]] | None = None  # where each engine's ranks are, which nobody has read yet

    def actor_options(self, rank: int) -> dict[str, Any]:
        """Of an actor rank. Colocated, it leaves room for what else runs there."""
        return self._options(*self._place(rank), *((0.4, 0.9) if self._config.is_colocated else (1, 1)))

    def task_options(self, rank: int) -> dict[str, Any]:
        """Of a question to the place of an actor rank."""
        return self._options(*self._place(rank), 0.1, 0.1)

    def engine_options(self, index: int) -> dict[str, Any]:
        """Of an engine: a bundle of its own, or, colocated, that of its first rank."""
        if self._engines is None:
            return self._options(*self._place(index * self._config.rollout.tp), 0.4, 0)
        return self._options(self._engines, index, 1, self._config.rollout.tp)

    def engine_environment(self, index: int) -> dict[str, str]:
        """Of an engine: colocated, the GPUs of its actor ranks, which Ray can't give twice."""
        if not self._config.is_colocated or self._config.cluster.device != "cuda":
            return {}
        tp = self._config.rollout.tp
        if self._asked is None:  # at the start all engines' at once: each question takes a process of its own
            self._asked = {each: self._ask(each) for each in range(self._config.rollout.engines)}
        try:
            places = ray.get(
                self._asked.pop(index, None) or self._ask(index), timeout=self._config.cluster.start_timeout_s
            )
        except GetTimeoutError:
            raise ClusterError(
                f"engine {index}: the nodes of its actor ranks don't say within cluster.start_timeout_s = "
                f"{self._config.cluster.start_timeout_s:g} s which GPUs they have; look at Ray's logs there"
            ) from None
        if len({node for node, _ in places}) > 1:
            raise ClusterError(f"engine {index} needs {tp} GPUs of one node; its actor ranks lie on {places}")
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpu for _, gpu in places)}

    def _ask(self, index: int) -> list[Any]:
        tp = self._config.rollout.tp
        ranks = range(index * tp, (index + 1) * tp)
        return [_node_and_gpu.options(**self.task_options(rank)).remote() for rank in ranks]

    def _place(self, rank: int) -> tuple[PlacementGroup, int]:
        block, bundle = divmod(rank, ranks_per_block(self._config))
        return self._blocks[block], bundle

    def _options(self, group: PlacementGroup, bundle: int, cpus: float, gpus: float) -> dict[str, Any]:
        return {
            "num_cpus": cpus,
            "num_gpus": gpus if self._config.cluster.device == "cuda" else 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=bundle, placement_group_capture_child_tasks=False
            ),
        }


@contextmanager
def ray_cluster(config: Config, with_actors: bool = True) -> Iterator[Placement]:
    """Joins the Ray at RAY_ADDRESS, or starts a local one; reserves a place for every process; leaves none behind.

    Args:
        with_actors: False: for engines only, with places of their own.

    Raises:
        ClusterError: Ray can't be used here (doctor/ray_needs.py); the cluster hasn't got the resources, or not within
            cluster.start_timeout_s.
    """
    ranks = config.actor.world_size if with_actors else 0
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    refuse_unfit_machine()
    if is_local(os.environ):
        os.environ.pop("RAY_ADDRESS", None)  # an empty one would be handed on
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(HEAD_GONE_S))
        options |= {
            "address": "local",
            "num_cpus": sum(bundle["CPU"] for bundle in _bundles(config, ranks)),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises whatever its parts do, tracebacks of half a page in it
        where = os.environ.get("RAY_ADDRESS", "here")
        raise ClusterError(f"Ray can't be joined or started ({where}): {' '.join(str(error).split())[:500]}") from error
    try:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put in a handler that aborts the process
        yield _reserve(config, ranks)
    finally:
        ray.shutdown()


def refuse_unfit_machine() -> None:
    """What Ray would say late, and in tracebacks (doctor/ray_needs.py).

    Raises:
        ClusterError: its address doesn't answer, or its folder won't do.
    """
    for finding in check_ray(Machine.this_one()):
        if finding.status == "FAIL":
            raise ClusterError(f"Ray can't be used: {finding.value}: {finding.reason}; {finding.remedy}")


def ranks_per_block(config: Config) -> int:
    """Consecutive ranks that must lie on one node: a tensor-parallel group, and that of the engines which share it."""
    actor, rollout = config.actor, config.rollout
    return min(actor.world_size, lcm(actor.tp, rollout.tp) if config.is_colocated else actor.tp)


def check_room(config: Config, nodes: list[Node], ranks: int) -> None:
    """Refuses what the job's nodes haven't got, before anything is started.

    Args:
        ranks: of the actor; 0 for engines alone.

    Raises:
        ClusterError: with the value, the reason and the remedy.
    """
    is_cuda = config.cluster.device == "cuda"
    what, key = ("GPUs", "GPU") if is_cuda else ("CPU slots", "CPU")
    has = [node.gpus if is_cuda else node.cpus for node in nodes]
    each = ", ".join(f"{node.name} {count}" for node, count in zip(nodes, has, strict=True))
    there = f"Ray has {sum(has)} on {len(nodes)} nodes ({each})"
    bundles = _bundles(config, ranks)
    engines = config.rollout.engines * config.rollout.tp
    needed = int(sum(bundle[key] for bundle in bundles))
    if needed > sum(has):
        who = f"{config.actor.layout} = {ranks} ranks" if ranks else "no actor"
        if not (ranks and config.is_colocated):
            who += f" and rollout.engines x rollout.tp = {engines if is_cuda else config.rollout.engines} for engines"
        raise ClusterError(
            f"the recipe asks for {needed} {what} ({who}), and {there}; submit the job with more nodes, or lower "
            "actor.dp or rollout.engines"
        )
    for setting, tp in (
        ("actor.tp", config.actor.tp if ranks else 1),
        ("rollout.tp", config.rollout.tp if is_cuda else 1),
    ):
        if tp > max(has):
            raise ClusterError(
                f"{setting} = {tp} needs {tp} {what} of one node, and {there}; a tensor-parallel group can't lie "
                f"across nodes: lower {setting}, and raise actor.pp or actor.dp"
            )
    block = ranks_per_block(config)
    room, blocks = sum(count // block for count in has), ranks // block
    if room < blocks:
        raise ClusterError(
            f"{config.actor.layout} needs {blocks} times {block} {what} of one node, and {there}, which is {room} "
            f"times; choose a tp that divides the {what} of a node"
        )
    if ranks and len(nodes) > 1 and config.carrier == "shared_memory" and needed > max(has):
        raise ClusterError(
            f'weights.carrier = "shared_memory" is for one machine, and the recipe needs {needed} {what}: {there}; set '
            'weights.carrier="collective"'
        )


def _reserve(config: Config, ranks: int) -> Placement:
    check_room(config, living_nodes(), ranks)
    bundles, size = _bundles(config, ranks), ranks_per_block(config)
    blocks = [
        placement_group(bundles[first : min(first + size, ranks)], strategy="STRICT_PACK")
        for first in range(0, ranks, size)
    ]
    engines = placement_group(bundles[ranks:], strategy="PACK") if bundles[ranks:] else None
    deadline = time.monotonic() + config.cluster.start_timeout_s
    for group in [*blocks, *([engines] if engines else [])]:
        if not group.wait(max(deadline - time.monotonic(), 0.0)):
            raise ClusterError(
                f"Ray cannot place {ranks} actor ranks and {config.rollout.engines} engines within "
                f"{config.cluster.start_timeout_s:g} s; it has {ray.cluster_resources()}, of which "
                f"{ray.available_resources()} are free"
            )
    position = {node.ray_id: place for place, node in enumerate(living_nodes())}
    blocks.sort(
        key=lambda block: (block.bundle_count < size, position[_node_of(block)])
    )  # a smaller one stays the last
    return Placement(config, blocks, engines)


def _node_of(group: PlacementGroup) -> str:
    return placement_group_table(group)["bundles_to_node_id"][0]


def _bundles(config: Config, ranks: int) -> list[dict[str, float]]:
    """Of the actor ranks, then of the engines, unless they share the ranks'."""

    def bundle(gpus: int) -> dict[str, float]:
        return {"CPU": 1, "GPU": gpus} if config.cluster.device == "cuda" else {"CPU": 1}

    engines = [] if ranks and config.is_colocated else [bundle(config.rollout.tp)] * config.rollout.engines
    return [bundle(1)] * ranks + engines


@ray.remote
def _node_and_gpu() -> tuple[str, str]:
    return ray.get_runtime_context().get_node_id(), str(ray.get_gpu_ids()[0])
