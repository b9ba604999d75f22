"""The rollout engines as processes: who is a member, who is being replaced, who may answer, and how often that may be.

The driver holds one `Fleet`. Weight syncs call a verb on all engines (weights/sync.py); requests go to them one by one
(cluster/stream.py). An engine that dies or hangs is started again in its place, alone: it holds nothing that the actor
hasn't got. Until it has started, and got weights where it reads none itself, it is not ready; the others go on.
"""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any

import ray

from megatron_nft.cluster.elsewhere import Shelf
from megatron_nft.cluster.placement import Placement
from megatron_nft.cluster.processes import Pending, Process, ProcessLost, dead_of, log_of, lost_of, watchdog
from megatron_nft.cluster.restarts import Restarts
from megatron_nft.cluster.usage import Usage, fetch
from megatron_nft.config import Config
from megatron_nft.rollout.vllm.environment import engine_environment
from megatron_nft.weights.wire import BucketManifest

LARGEST_TO_EACH_BYTES = 16 << 10
"""Of what goes to each engine with its call. What is larger, such as a handle for each GPU of a cluster, goes into the
object store once."""


class _EngineProcess(Process):
    """Runs in the engine's own process."""

    def prepare(self) -> None:
        """Imports what an engine is made of, whatever has its GPU: that takes none of its memory."""
        from megatron_nft.rollout.vllm.engine import import_vllm

        import_vllm()

    def build(self, config: Config, index: int, starts_empty: bool) -> None:
        from megatron_nft.rollout.vllm.engine import VllmEngine

        with watchdog(config.cluster.start_timeout_s):
            self.engine = VllmEngine(
                str(config.model.hf_folder),
                config.rollout,
                device=config.cluster.device,
                max_model_len=config.max_sequence_tokens,
                seed=config.run.seed,
                index=index,
                is_colocated=config.is_colocated,
                starts_empty=starts_empty,
                gives_experts=config.replays_engine,
                lora=config.lora if config.syncs_adapter else None,
            )
            self.shelf = Shelf()

    def call(self, verb: str, arguments: tuple, timeout_s: float) -> Any:
        with watchdog(timeout_s), self.log.during(verb):
            answer = getattr(self.engine, verb)(*arguments)
        if verb == "advance":
            groups, load = answer
            return [(key, self.shelf.put(group)) for key, group in groups], load
        if verb == "forget":
            self.shelf.clear()
        return answer

    def hand_over(self, keys: list[int]) -> Any:
        """What groups have left here (elsewhere.py); a value for each of several references."""
        arrays = self.shelf.hand_over(keys)
        return arrays if len(arrays) > 1 else arrays[0]

    def usage(self) -> Usage:
        usage = super().usage()
        usage.more = self.engine.decode_steps()
        return usage


class Fleet:
    """All rollout engines. Starts them at once; `begin_build` loads the model.

    An engine that dies or hangs is started again, up to rollout.max_restarts times without a step further.

    Args:
        starts_empty: no engine reads weights: an actor sends them before the first answer.
        logs: where each engine writes its log; None: in Ray's own.

    Attributes:
        link: changes with every failure, so that the weights' carrier connects anew.
    """

    def __init__(
        self, config: Config, placement: Placement, *, starts_empty: bool = False, logs: Path | None = None
    ) -> None:
        self._config, self._placement, self._starts_empty, self._logs = config, placement, starts_empty, logs
        self.link = self._step = 0
        self._restarts = Restarts(config.rollout.max_restarts, "engines have", "rollout.max_restarts")
        self._engines = {name: self._start(name) for name in map(_name, range(config.rollout.engines))}
        self._starting: dict[str, Pending] = {}  # in place of lost ones
        self._empty = set(self._engines) if starts_empty else set()  # without weights
        self._lock = RLock()  # the source's thread, an evaluation's and the driver's see to the same members

    def _start(self, name: str) -> Any:
        rollout, cluster, index = self._config.rollout, self._config.cluster, _number(name)
        environment = engine_environment(cluster.device, cluster.threads_per_process, rollout.tp, index)
        environment |= self._placement.engine_environment(index)
        options = self._placement.engine_options(index)
        options |= {"runtime_env": {"env_vars": environment}}
        process = ray.remote(_EngineProcess).options(**options).remote(log_of(name, self._logs))
        process.prepare.remote()  # goes on beside the other processes' starts; what is wrong with it, `build` will say
        return process

    # --- members

    @property
    def names(self) -> list[str]:
        """ "engine 0", "engine 1" ..."""
        return list(self._engines)

    def handle(self, name: str) -> Any:
        """Ray's handle of an engine's process, another after it has been replaced."""
        return self._engines[name]

    def is_ready(self, name: str) -> bool:
        """It may answer: it has started, and has weights."""
        with self._lock:
            self._look_at_starts()
            return name not in self._starting and name not in self._empty

    @property
    def wants_weights(self) -> bool:
        """An engine that was started again has come up and waits for weights, or none is ready at all."""
        with self._lock:
            self._look_at_starts()
            return self.is_empty or any(name not in self._starting for name in self._empty)

    @property
    def is_empty(self) -> bool:
        """No engine has weights."""
        return self._empty >= self._engines.keys()

    def begin_build(self) -> Pending:
        """Every engine loads the model."""
        return self._begin_build(self.names)

    def _begin_build(self, names: list[str]) -> Pending:
        engines = {name: self._engines[name] for name in names}
        refs = {
            name: engine.build.remote(self._config, _number(name), self._starts_empty)
            for name, engine in engines.items()
        }
        return Pending("start", refs, self._config.cluster.start_timeout_s, engines, self._logs)

    def reuse(self, config: Config) -> None:
        """Serves another run, of as many engines with the same settings; an actor sends the weights.

        What the run before has left undone is forgotten; engines that it has lost are started again.
        """
        assert config.rollout.engines == len(self._engines), "one process an engine"
        self._config, self._step, self._empty = config, 0, set(self._engines)
        self._restarts = Restarts(config.rollout.max_restarts, "engines have", "rollout.max_restarts")
        self.replace_lost("another run begins")
        self.forget()

    # --- replacement

    def step_done(self, step: int) -> None:
        """A step further than before ends the row of restarts."""
        self._step = max(self._step, step)

    def replace(self, names: list[str], why: str) -> None:
        """Starts new processes for lost engines, and does not wait for them.

        Raises:
            ClusterError: that has been too often.
        """
        with self._lock:
            self.link += 1
            self._restarts.count(why, self._step, len(names))
            logging.getLogger(__name__).warning("restarting %s: %s", ", ".join(names), why)
            for name in names:
                ray.kill(self._engines[name])  # its process may be gone, its place must be free
                self._engines[name] = self._start(name)
                self._starting[name] = self._begin_build([name])
                if self._starts_empty:
                    self._empty.add(name)

    def wait_for_starts(self) -> None:
        """Waits until every engine that was started again is up. To be called before a weight sync.

        Raises:
            ClusterError: engines were lost while they started, more often than rollout.max_restarts.
        """
        while starting := list(self._starting.items()):
            self._finish_start(*starting[0])

    def _look_at_starts(self) -> None:
        for name, pending in list(self._starting.items()):
            if pending.is_done():
                self._finish_start(name, pending)

    def _finish_start(self, name: str, pending: Pending) -> None:
        try:
            pending.wait()
        except ProcessLost as error:
            with self._lock:
                if self._starting.get(name) is pending:  # else another thread has seen it, too
                    self.replace([name], str(error))
        else:
            with self._lock:
                if self._starting.get(name) is pending:
                    del self._starting[name]

    def with_replacements(self, work: Callable[[], Any]) -> Any:
        """What `work` returns; it is called again each time that it fails with engines dead, once they are replaced.

        Raises:
            ClusterError: engines died more often than rollout.max_restarts.
            Exception: what `work` raised with all engines alive.
        """
        self.wait_for_starts()
        while True:
            try:
                return work()
            except Exception as error:
                self.link += 1
                # Again: an engine's death may first be seen as an error of the actor ranks.
                if not (dead := dead_of(self._engines)):
                    raise
                self.replace(dead, f"{', '.join(dead)} died: {error}")
                self.wait_for_starts()

    def replace_lost(self, why: str) -> None:
        """Starts engines again that died or don't answer, after the loss of others; they wait for an update.

        Raises:
            ClusterError: that has been too often.
        """
        self.wait_for_starts()
        self.link += 1
        if lost := lost_of(self._engines):
            self.replace(lost, f"{', '.join(lost)} lost: {why}")
            self.wait_for_starts()

    def kill(self) -> None:
        """Ends all engines at once, whatever they are at; none is started again."""
        self._restarts = Restarts(0, "engines have", "the run is ending")
        for engine in self._engines.values():
            ray.kill(engine)

    # --- verbs of all engines

    def usage(self) -> dict[str, Usage]:
        """Of each engine that has started, since the last call."""
        with self._lock:
            return fetch({name: engine for name, engine in self._engines.items() if name not in self._starting})

    def sleep(self) -> None:
        """Leaves the GPUs to the actor: see rollout/api.py. Engines that are being started are waited for.

        Raises:
            ClusterError: engines died more often than rollout.max_restarts.
        """
        self.with_replacements(lambda: self.call("sleep"))

    def forget(self) -> None:
        """Drops all requests: whoever asked goes back to a checkpoint. Raises as `sleep`."""
        self.with_replacements(lambda: self.call("forget"))

    def wake(self, what: str) -> None:
        """Takes the memory of "weights" or of the "kv_cache" again."""
        self.call("wake", what)

    def start_update(self, names: list[str]) -> None:
        """Tells every engine which weights will come; from here on none generates until `finish_update`."""
        self.call("start_update", names)

    def update(self, manifests: list[BucketManifest]) -> None:
        """Every engine loads one bucket of each stage."""
        what = "load " + " and ".join(manifest.bucket for manifest in manifests)
        arguments = ([manifest.to_dict() for manifest in manifests],)
        shared = ray.put(arguments) if len(pickle.dumps(arguments)) > LARGEST_TO_EACH_BYTES else arguments
        self._call("update", shared, what)

    def finish_update(self, policy_version: int) -> None:
        """Every engine checks that it has all weights, forgets its caches and stamps its rollouts from here on."""
        self.call("finish_update", policy_version)
        self._empty.clear()

    def call(self, verb: str, *arguments: Any, what: str = "") -> list[Any]:
        """What every engine returns, in their order; see `Pending.wait` for what it raises."""
        return self._call(verb, arguments, what or verb)

    def _call(self, verb: str, arguments: Any, what: str) -> list[Any]:
        """
        Args:
            arguments: a tuple, or Ray's reference to one.
        """
        timeout_s = self._config.weights.timeout_s
        refs = {name: engine.call.remote(verb, arguments, timeout_s) for name, engine in self._engines.items()}
        return Pending(what, refs, timeout_s, self._engines, self._logs).wait()


def _name(index: int) -> str:
    return f"engine {index}"


def _number(name: str) -> int:
    return int(name.rpartition(" ")[2])
