"""One Ray, two Megatron ranks and up to two engines that serve one run after another, driven from the test's process.

Starting them takes half a minute, having them serve another run a second: ranks build the model anew in their
processes, engines keep theirs and get weights by the first sync. What a run kills is started again for the next.
"""

import os
import re
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any
from unittest import mock

import ray

from megatron_nft import replay
from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.placement import Placement
from megatron_nft.cluster.processes import Pending, dead_of
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import Config, load_config
from megatron_nft.run import command_line
from megatron_nft.run.parts import Processes, begin_build
from megatron_nft.run.run import run_recipe
from tests.e2e.driver import RECIPE, Ended, call, call_train

MAX_ENGINES = 2
BUILT = ["data.max_prompt_tokens=400", "rollout.kv_cache_gib=0.25", "rollout.engines=1"]
"""What an engine is built with; a run may give it less to do."""


def base(*overrides: str) -> Config:
    """The quickstart's recipe, as the engines are built with it."""
    return load_config(RECIPE, [*BUILT, *overrides])


class _Anywhere:
    """A `Placement` of a process that takes no one's place."""

    def engine_options(self, index: int) -> dict[str, Any]:
        return {"num_cpus": 0}

    def engine_environment(self, index: int) -> dict[str, str]:
        return {}


def _import_vllm(process: Any) -> None:
    import vllm.model_executor.models.qwen2
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm import LLM  # noqa: F401

    import megatron_nft.rollout.vllm.engine  # noqa: F401


class SharedFleet(Fleet):
    """As many engines as a run asks for: those that are up, and new ones where they are too few.

    Where one has been started in the place of another, or a second one, the next to be started is a process that has
    imported vLLM meanwhile: engines are killed often here, and that takes most of a start.
    """

    def __init__(self, config: Config, placement: Placement, **more: Any) -> None:
        self._built, self._all, self._spare = config, {}, None
        super().__init__(config, placement, **more)

    def _start(self, name: str) -> Any:
        process = self._spare or super()._start(name)
        if self._all:
            mine, self._placement = self._placement, _Anywhere()
            self._spare = super()._start(f"engine {MAX_ENGINES}")
            self._placement = mine
            self._spare.__ray_call__.remote(_import_vllm)
        self._all[name] = process
        return process

    def _begin_build(self, names: list[str]) -> Pending:
        mine, self._config = self._config, self._built  # whichever run starts it, it serves others, too
        try:
            return super()._begin_build(names)
        finally:
            self._config = mine

    def reuse(self, config: Config) -> None:
        names = [f"engine {index}" for index in range(config.rollout.engines)]
        new = [name for name in names if name not in self._all]
        self._engines = {name: self._all.get(name) or self._start(name) for name in names}
        self._begin_build(new).wait()
        super().reuse(config)
        on_sync = config.rollout.on_sync
        self.do(lambda process: setattr(process.engine, "_on_sync", on_sync))

    def do(self, action: Any) -> list[Any]:
        """What a function of each engine's process returns there."""
        return ray.get([engine.__ray_call__.remote(action) for engine in self._engines.values()])


class Shared:
    """The processes, and commands that use them in place of their own.

    Attributes:
        logs: the folder of their logs.
    """

    def __init__(self, placement: Placement, logs: Path) -> None:
        self.logs = logs
        self._ranks = Actors(base(), placement, logs)
        self._engines = SharedFleet(base(), placement, logs=logs, starts_empty=True)
        for pending in begin_build(Processes(actors=self._ranks, engines=self._engines), shared=False):
            pending.wait()

    def processes(self, config: Config) -> Processes:
        """For a run of this recipe; of one rank, if it asks for one."""
        assert (config.rollout.dtype, config.rollout.tp) == ("float32", 1)
        assert config.max_sequence_tokens <= base().max_sequence_tokens
        if dead_of(self._ranks._ranks):
            self._ranks.restart(base())
        actors = self._ranks
        if config.actor.world_size == 1:
            actors = copy(actors)
            actors._ranks = {"actor rank 0": actors._ranks["actor rank 0"]}
        return Processes(actors=actors, engines=self._engines)

    def serve(self, config: Config) -> tuple[Actors, SharedFleet]:
        """Ranks with this recipe's model, and engines that wait for weights."""
        actors = self.actors(config)
        actors.begin_build().wait()
        self._engines.reuse(config)
        return actors, self._engines

    def actors(self, config: Config) -> Actors:
        """That are to build the model."""
        actors = self.processes(config).actors
        actors.reuse(config)
        return actors

    def train(self, folder: Path, *overrides: str, **more: Any) -> Ended:
        """The command `train`, or `train_async`: see `call_train`."""

        def run(config: Config, steps: Any, **more: Any) -> None:
            run_recipe(config, steps, processes=self.processes(config), **more)

        with mock.patch.object(command_line, "run_recipe", run):
            return call_train(folder, *overrides, **more)

    def replay(self, *arguments: object) -> Ended:
        """The command `replay`."""
        with mock.patch.multiple(
            "megatron_nft.run.replay",
            ray_cluster=lambda config: nullcontext(),
            Actors=lambda config, placement: self.actors(config),
        ):
            return call(replay.main, *arguments)

    def handle(self, name: str) -> Any:
        """Ray's, of "engine N" or "actor rank N"."""
        return (self._engines._all | self._ranks._ranks)[name]

    def pid(self, name: str) -> int:
        """Of "engine N" or "actor rank N"."""
        return ray.get(self.handle(name).__ray_call__.remote(lambda _: os.getpid()))

    def threads(self, name: str) -> int:
        """Of "engine N" or "actor rank N"."""
        return ray.get(self.handle(name).__ray_call__.remote(lambda _: len(os.listdir("/proc/self/task"))))

    def log(self, name: str) -> str:
        """What the last process of that name has printed."""
        text = (self.logs / f"{name.replace(' ', '_')}.log").read_text()
        return re.split(r"^=== process ", text, flags=re.M)[-1]
