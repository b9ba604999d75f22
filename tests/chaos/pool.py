"""Ranks and engines that outlive the drivers which use them, so that a driver that is killed costs no start of theirs.

    python -m tests.chaos.pool FOLDER      a Ray with them; says its address; ends with its standard input

A driver takes them by name. What is killed is made anew here, and the next one is up already; an engine starts with the
quickstart's model and waits for weights.
"""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import ray

from megatron_nft.cluster.fleet import Fleet, _EngineProcess
from megatron_nft.cluster.processes import Pending
from megatron_nft.cluster.ranks import Actors, _ActorRank
from megatron_nft.config import Config, load_config
from megatron_nft.rollout.vllm.environment import engine_environment
from megatron_nft.run.parts import Processes

RECIPE = "launch/recipes/quickstart.toml"
SPACE = "chaos"
NUM = {"rank": 2, "engine": 1}
"""That are up, or on their way: a rank takes longest to start, and is killed most."""
TAKE_S = 120.0
LOOK_S = 0.5


def base() -> Config:
    """What engines are built with."""
    return load_config(
        RECIPE, ["actor.tp=1", "rollout.engines=1", "rollout.kv_cache_gib=0.1", "rollout.max_concurrent=16"]
    )


# --- in the process that holds them


def _make(kind: str, number: int, folder: Path) -> Any:
    options = {"name": f"{kind} {number}", "lifetime": "detached", "num_cpus": 0}
    log = folder / f"{kind}_{number}.log"
    if kind == "rank":
        environment = {"OMP_NUM_THREADS": "1"}
        actor = ray.remote(_ActorRank).options(**options, runtime_env={"env_vars": environment}).remote(log)
        actor.__ray_call__.remote(_import_megatron)
    else:
        environment = engine_environment("cpu", 1, 1, 0)
        actor = ray.remote(_EngineProcess).options(**options, runtime_env={"env_vars": environment}).remote(log)
        actor.build.remote(base(), 0, True)
    return actor


def _import_megatron(process: Any) -> None:
    import megatron_nft.actor.worker  # noqa: F401


def hold(folder: Path) -> None:
    """Until standard input ends."""
    context = ray.init(
        address="local", num_cpus=4, namespace=SPACE, include_dashboard=False, object_store_memory=256 << 20,
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    print(context.address_info["gcs_address"], flush=True)
    numbers, handles = dict.fromkeys(NUM, 0), []
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        there = ray.util.list_named_actors()
        for kind, num in NUM.items():
            for _ in range(num - sum(name.startswith(kind) for name in there)):
                handles.append(_make(kind, numbers[kind], folder))
                numbers[kind] += 1
    ray.shutdown()


class Pool:
    """That process, from outside."""

    def __init__(self, folder: Path) -> None:
        with (folder / "pool.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.pool", str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        self.address = self._process.stdout.readline().strip()
        assert self.address, (folder / "pool.log").read_text()

    def close(self) -> None:
        """Ends all of it."""
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


# --- in a driver


def _take(kind: str, without: set[str]) -> Any:
    """The first of its kind that is there, and hasn't been taken before."""
    until = time.monotonic() + TAKE_S
    while time.monotonic() < until:
        names = [n for n in ray.util.list_named_actors() if n.startswith(kind) and n not in without]
        for name in sorted(names, key=lambda n: int(n.split()[1])):
            try:
                handle = ray.get_actor(name)
            except ValueError:
                continue  # it has just been killed
            without.add(name)
            return handle
        time.sleep(LOOK_S)
    raise TimeoutError(f"no {kind} within {TAKE_S:g} s")


class PooledActors(Actors):
    """One rank, of the pool."""

    used: ClassVar[set[str]] = set()

    def _start(self) -> dict[str, Any]:
        return {"actor rank 0": _take("rank", self.used)}

    def pid(self) -> int:
        """Once it has written what the driver before has begun to save: its ranks would be gone by now."""
        return ray.get(self._ranks["actor rank 0"].__ray_call__.remote(_at_rest), timeout=TAKE_S)


class PooledFleet(Fleet):
    """One engine, of the pool."""

    used: ClassVar[set[str]] = set()

    def _start(self, name: str) -> Any:
        return _take("engine", self.used)

    def pid(self) -> int:
        """Once it is built."""
        return ray.get(self._engines["engine 0"].__ray_call__.remote(lambda _: os.getpid()), timeout=TAKE_S)

    def _begin_build(self, names: list[str]) -> Pending:
        engines = {name: self._engines[name] for name in names}
        refs = {name: engine.ping.remote() for name, engine in engines.items()}
        return Pending("start", refs, self._config.cluster.start_timeout_s, engines, self._logs)


def _at_rest(process: Any) -> int:
    save = getattr(process.worker, "_save", None)
    if save is not None:
        save._written.exception(TAKE_S)
    return os.getpid()


def join(address: str, config: Config) -> Processes:
    """A driver's processes, out of the pool; for the whole of its life."""
    ray.init(address=address, namespace=SPACE, log_to_driver=False, logging_level="ERROR")
    return Processes(actors=PooledActors(config, None), engines=PooledFleet(config, None, starts_empty=True))


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
