"""Ranks and engines of a run as its driver sees them, many of them in one process each.

`Actors` and `Fleet` are the run's own but for the process that a handle leads to: a call goes by Ray to the process
that hosts all ranks, or all engines, with the number of the one that is meant. So each rank and engine gets its own
message, and sends its own answer.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from benchmarks.scale.answers import Answers
from benchmarks.scale.engines import PlayedFleet
from benchmarks.scale.ranks import PlayedRanks
from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.placement import Placement
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import Config
from megatron_nft.plan.planner import Plan

AT_ONCE = 10_000
"""Calls that the engines' process holds at the same time."""


@ray.remote(num_cpus=0)
class RankHost:
    """All ranks."""

    def __init__(self, config: Config) -> None:
        self._ranks = PlayedRanks(config)

    def call(self, index: int, verb: str, arguments: tuple) -> Any:
        """Of one rank."""
        return self._ranks.call(index, verb, arguments)

    def counts(self) -> Mapping[str, float]:
        """Calls by verb."""
        return self._ranks.counts()


@ray.remote(num_cpus=0, max_concurrency=AT_ONCE)
class EngineHost:
    """All engines."""

    def __init__(self, count: int, plan: Plan) -> None:
        work = plan.workload
        answers = Answers(work.lengths, plan.config.rollout.max_answer_tokens, plan.assumptions.mixed_share)
        self._fleet = PlayedFleet(count, plan.engine, plan.machine, plan.memory.places, answers)

    async def call(self, index: int, verb: str, arguments: tuple) -> Any:
        """Of one engine."""
        return await self._fleet.call(index, verb, arguments)

    async def counts(self) -> Mapping[str, float]:
        """The clock, and calls by verb."""
        return self._fleet.counts()


def handle(host: Any, index: int) -> SimpleNamespace:
    """Looks to a driver like Ray's handle of a process of its own."""

    def call(verb: str, arguments: Any, timeout_s: float) -> Any:
        return host.call.remote(index, verb, arguments)  # a tuple, or Ray's reference to one

    def verb(name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: host.call.remote(index, name, ()))

    names = ("ping", "prepare", "usage", "address", "build")
    return SimpleNamespace(call=SimpleNamespace(remote=call), **{name: verb(name) for name in names})


class PlayedActors(Actors):
    """The run's, of ranks that are played."""

    def __init__(self, config: Config, placement: Placement, logs: Path | None = None) -> None:
        self.host = RankHost.remote(config)
        super().__init__(config, placement, logs)

    def _start(self) -> dict[str, Any]:
        return {f"actor rank {rank}": handle(self.host, rank) for rank in range(self._config.actor.world_size)}


class PlayedEngines(Fleet):
    """The run's, of engines that are played."""

    def __init__(self, config: Config, placement: Placement, plan: Plan, **more: Any) -> None:
        self.host = EngineHost.remote(config.rollout.engines, plan)
        super().__init__(config, placement, **more)

    def _start(self, name: str) -> Any:
        return handle(self.host, int(name.rpartition(" ")[2]))
