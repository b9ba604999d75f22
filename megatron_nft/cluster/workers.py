"""Actors and engines as processes: one verb, called on all ranks, with a deadline. The only ray.remote wrapping.

The driver holds `Actors` (Megatron ranks, actor/worker.py) and `EngineGroup` (vLLM engines, rollout/engine.py). Both
look to train.py like one object each; who runs where comes from cluster/placement.py. A rank that fails ends the wait
of all others at once, with its own error. An engine that dies is replaced: it holds nothing that the actor hasn't got.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.placement import Placement
from megatron_nft.cluster.processes import Pending, Process, dead_of, log_of, lost_of, watchdog
from megatron_nft.config import Config
from megatron_nft.rollout.api import Sampling
from megatron_nft.rollout.vllm.engine import engine_environment
from megatron_nft.run.checkpoint_folder import CheckpointError, FileRecord, read_manifest, shares
from megatron_nft.types import Prompt, RolloutGroup, TrainBatch
from megatron_nft.weights.export import finish_hf_folder, hf_folder_in_progress
from megatron_nft.weights.wire import BucketManifest


class _ActorRank(Process):
    """Runs in the rank's own process."""

    def address(self) -> str:
        """ "host:port" at which this process can be the meeting point of all ranks."""
        from megatron_nft.actor.topology import free_address

        return free_address(ray.util.get_node_ip_address())

    def build(self, config: Config, rank: int, master: str) -> None:
        from megatron_nft.actor.worker import Worker

        with watchdog(config.cluster.start_timeout_s):
            self.worker = Worker(config, rank=rank, master=master)

    def call(self, verb: str, arguments: tuple, timeout_s: float) -> Any:
        with watchdog(timeout_s):
            return getattr(self.worker, verb)(*arguments)


@dataclass(frozen=True)
class PendingManifests:
    """Buckets on their way."""

    pending: Pending

    def wait(self) -> list[BucketManifest]:
        """Their manifests, one of each stage that has a bucket left; see `Pending.wait`."""
        return [BucketManifest.from_dict(plain) for plain in self.pending.wait() if plain is not None]


class Actors:
    """All Megatron ranks. Starts them at once; `begin_build` has them build the model.

    Args:
        logs: where each rank writes its log; None: in Ray's own.
    """

    def __init__(self, config: Config, placement: Placement, logs: Path | None = None) -> None:
        self._config, self._placement, self._logs = config, placement, logs
        self._ranks = self._start()

    def _start(self) -> dict[str, Any]:
        config, placement = self._config, self._placement
        return {
            (name := f"actor rank {rank}"): ray.remote(_ActorRank)
            .options(
                **placement.actor_options(rank),
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(config.cluster.threads_per_process)}},
            )
            .remote(log_of(name, self._logs))
            for rank in range(config.actor.world_size)
        }

    def restart(self, config: Config) -> None:
        """Ends the ranks' processes and starts new ones, for another run in the same place; `begin_build` follows.

        New ones, since gloo's threads outlive the process groups they served, and poll.
        """
        self.kill()
        self._config = config
        self._ranks = self._start()

    def kill(self) -> None:
        """Ends all ranks at once, whatever they are at."""
        for rank in self._ranks.values():
            ray.kill(rank)

    def begin_build(self) -> Pending:
        """Every rank joins the process groups, builds its part of the model and reads its weights."""
        handles, timeout_s = list(self._ranks.values()), self._config.cluster.start_timeout_s
        address = {"actor rank 0": handles[0].address.remote()}
        master = Pending("start", address, timeout_s, self._ranks, self._logs).wait()[0]
        refs = {
            name: handle.build.remote(self._config, rank, master)
            for rank, (name, handle) in enumerate(self._ranks.items())
        }
        return Pending("start", refs, timeout_s, self._ranks, self._logs)

    def score(self, batch: TrainBatch) -> TrainBatch:
        """The batch with old_logprobs set: each answer's log-probs under the actor's current weights.

        And reference_logprobs, those under the frozen reference model, if the loss asks for them.
        """
        return self.score_reference(self._scored(batch, "score", "old_logprobs_A"))

    def score_reference(self, batch: TrainBatch) -> TrainBatch:
        """The batch with reference_logprobs set, if the loss asks for them."""
        if self._config.algorithm.kl_weight:
            batch = self._scored(batch, "score_reference", "reference_logprobs_A")
        return batch

    def _scored(self, batch: TrainBatch, verb: str, field: str) -> TrainBatch:
        shares = [[m for update in batch.updates for m in update[d]] for d in range(self._config.actor.dp)]
        scores = {
            data_parallel_rank(self._config.actor, rank): iter(answer)
            for rank, answer in enumerate(self._call_by_replica(verb, shares))
            if answer is not None
        }

        return batch.map_sequences(lambda s, replica: replace(s, **{field: next(scores[replica])}))

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """All optimizer updates of a scored batch; their metrics."""
        shares = [[update[d] for update in batch.updates] for d in range(self._config.actor.dp)]
        return next(answer for answer in self._call_by_replica("train_step", shares) if answer is not None)

    @cached_property
    def weight_names(self) -> list[str]:
        """HF names of all weights that a sync sends."""
        return [name for names in self._call("weight_names") if names is not None for name in names]

    @cached_property
    def num_rounds(self) -> int:
        """`begin_send`s of a sync."""
        return max(self._call("num_rounds"))

    def begin_send(self, index: int, link: int) -> "PendingManifests":
        """Puts one bucket of every stage on the wire."""
        what, timeout_s = f"send bucket {index} of each stage", self._config.weights.timeout_s
        return PendingManifests(self._begin("send_bucket", index, link, what=what, timeout_s=timeout_s))

    def offload(self) -> None:
        """Leaves the GPUs to the engines, where they are shared: see Worker.offload."""
        if self._config.is_colocated:
            self._call("offload")

    def reload(self) -> None:
        """Takes the GPUs again, where they are shared: see Worker.reload."""
        if self._config.is_colocated:
            self._call("reload")

    def begin_save(self, folder: Path, step: int, policy_version: int) -> None:
        """Copies the state of all ranks, and begins to write it into `folder`; returns once it is copied."""
        self._call("begin_save", str(folder), step, policy_version)

    def is_saved(self) -> bool:
        """Whether all ranks have written their files of the save under way.

        Raises:
            CheckpointError: a rank couldn't; the save is over.
        """
        states = dict(zip(self._ranks, self._call("save_state"), strict=True))
        if not all(is_written for is_written, _ in states.values()):
            return False
        if errors := [f"{name}: {error}" for name, (_, error) in states.items() if error]:
            raise CheckpointError("; ".join(errors))
        return True

    def finish_save(self) -> dict[str, FileRecord]:
        """Completes a save that `is_saved`; the records of all files that the ranks wrote."""
        return {name: record for records in self._call("finish_save") for name, record in records.items()}

    def damages(self, folder: Path) -> list[str]:
        """What is wrong with a checkpoint's files; every rank reads a share of them.

        Raises:
            CheckpointError: its manifest is missing or damaged.
        """
        arguments = [(str(folder), share) for share in shares(read_manifest(folder), len(self._ranks))]
        pending = self._begin_each("damages", arguments, what="damages", timeout_s=self._config.actor.timeout_s)
        return [damage for damages in pending.wait() for damage in damages]

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint, saved in this layout or another. Raises CheckpointError."""
        self._call("load", str(folder))

    def save_hf(self, folder: Path) -> None:
        """Writes the model as a complete HF folder; an earlier one is replaced once the new one is whole."""
        with hf_folder_in_progress(folder) as partial:
            weight_maps = self._call("save_hf", str(partial))
            finish_hf_folder(partial, self._config.model.hf_folder, [m for m in weight_maps if m is not None])

    def _call(self, verb: str, *arguments: Any) -> list[Any]:
        return self._begin(verb, *arguments, what=verb, timeout_s=self._config.actor.timeout_s).wait()

    def _begin(self, verb: str, *arguments: Any, what: str, timeout_s: float) -> Pending:
        return self._begin_each(verb, [arguments] * len(self._ranks), what=what, timeout_s=timeout_s)

    def _begin_each(self, verb: str, arguments: Sequence[Any], *, what: str, timeout_s: float) -> Pending:
        """Calls `verb` on all ranks, each with its own arguments: a tuple, or Ray's reference to one."""
        refs = {
            name: handle.call.remote(verb, mine, timeout_s)
            for (name, handle), mine in zip(self._ranks.items(), arguments, strict=True)
        }
        return Pending(what, refs, timeout_s, self._ranks, self._logs)

    def _call_by_replica(self, verb: str, shares: Sequence[Any]) -> list[Any]:
        """Calls `verb` on all ranks, with the share of each rank's data-parallel replica."""
        stored = [ray.put((share,)) for share in shares]
        arguments = [stored[data_parallel_rank(self._config.actor, rank)] for rank in range(len(self._ranks))]
        return self._begin_each(verb, arguments, what=verb, timeout_s=self._config.actor.timeout_s).wait()


class _EngineProcess(Process):
    """Runs in the engine's own process."""

    def build(self, config: Config, index: int, starts_empty: bool) -> None:
        from megatron_nft.rollout.vllm.engine import Engine

        with watchdog(config.cluster.start_timeout_s):
            self.engine = Engine(
                str(config.model.hf_folder),
                config.rollout,
                device=config.cluster.device,
                max_model_len=config.max_sequence_tokens,
                seed=config.run.seed,
                index=index,
                is_colocated=config.is_colocated,
                starts_empty=starts_empty,
            )

    def generate(self, prompts: list[Prompt], sampling: Sampling, timeout_s: float) -> Iterator[RolloutGroup]:
        groups = self.engine.generate(prompts, sampling)
        while True:
            with watchdog(timeout_s):
                if (group := next(groups, None)) is None:
                    return
            yield group

    def call(self, verb: str, arguments: tuple, timeout_s: float) -> Any:
        with watchdog(timeout_s):
            return getattr(self.engine, verb)(*arguments)


class EngineGroup:
    """All rollout engines (the `Engines` of rollout/sample.py). Starts them at once; `begin_build` loads the model.

    An engine that dies or hangs is started again, up to rollout.max_restarts times in a run.

    Args:
        starts_empty: no engine reads weights: an actor sends them before the first answer.
        logs: where each engine writes its log; None: in Ray's own.

    Attributes:
        refill: gives every engine the current weights; called before replaced engines generate again.
        link: changes with every failure, so that the weights' carrier connects anew.
    """

    def __init__(
        self, config: Config, placement: Placement, *, starts_empty: bool = False, logs: Path | None = None
    ) -> None:
        self._config, self._placement, self._starts_empty, self._logs = config, placement, starts_empty, logs
        self.num_engines, self.is_colocated = config.rollout.engines, config.is_colocated
        self.refill: Callable[[], Any] = lambda: None
        self.link = self._restarts = 0
        self._engines = {f"engine {index}": self._start(index) for index in range(self.num_engines)}

    def _start(self, index: int) -> Any:
        rollout, cluster = self._config.rollout, self._config.cluster
        environment = engine_environment(cluster.device, cluster.threads_per_process, rollout.tp, index)
        environment |= self._placement.engine_environment(index)
        options = self._placement.engine_options(index)
        process = ray.remote(_EngineProcess).options(**options, runtime_env={"env_vars": environment})
        return process.remote(log_of(f"engine {index}", self._logs))

    @property
    def names(self) -> list[str]:
        """ "engine 0", "engine 1" ..."""
        return list(self._engines)

    def handle(self, name: str) -> Any:
        """Ray's handle of an engine's process, which `replace` changes."""
        return self._engines[name]

    def begin_build(self) -> Pending:
        """Every engine loads the model."""
        return self._begin_build(list(self._engines))

    def _begin_build(self, names: list[str]) -> Pending:
        refs = {
            name: self._engines[name].build.remote(self._config, _number(name), self._starts_empty) for name in names
        }
        return Pending("start", refs, self._config.cluster.start_timeout_s, self._engines, self._logs)

    def with_replacements(self, work: Callable[[], Any]) -> Any:
        """What `work` returns; it is called again each time that it fails with engines dead, once they are replaced.

        Raises:
            ClusterError: engines died more often than rollout.max_restarts.
            Exception: what `work` raised with all engines alive.
        """
        while True:
            try:
                return work()
            except Exception as error:
                self.link += 1
                # Again: an engine's death may first be seen as an error of the actor ranks.
                if not (dead := dead_of(self._engines)):
                    raise
                self.replace(dead, f"{', '.join(dead)} died: {error}").wait()

    def replace_lost(self, why: str) -> None:
        """Starts engines again that died or don't answer, after the loss of others; they wait for an update.

        Raises:
            ClusterError: that has been too often.
        """
        self.link += 1
        if lost := lost_of(self._engines):
            self.replace(lost, f"{', '.join(lost)} lost: {why}").wait()

    def replace(self, names: list[str], why: str) -> Pending:
        """Starts new processes for lost engines; they load the model of the recipe, and wait for an update."""
        self.link += 1
        self._restarts += len(names)
        if self._restarts > self._config.rollout.max_restarts:
            raise ClusterError(
                f"{why}; engines have been restarted {self._restarts - len(names)} times (rollout.max_restarts): look "
                "for what ends them, such as the machine's memory"
            )
        logging.getLogger(__name__).warning("restarting %s: %s", ", ".join(names), why)
        for name in names:
            ray.kill(self._engines[name])  # its process may be gone, its place must be free
            self._engines[name] = self._start(_number(name))
        return self._begin_build(names)

    def generate(self, shards: list[list[Prompt]], sampling: Sampling) -> Iterator[RolloutGroup]:
        """Answers shard i on engine i; yields groups from all engines as they get ready.

        If an engine dies or hangs, the others go on while it starts again; then it gets the weights and answers what
        is left.
        """
        left = {
            name: {prompt.prompt_id: prompt for prompt in shard}
            for name, shard in zip(self._engines, shards, strict=True)
            if shard
        }
        starting: list[Pending] = []
        while left:
            yield from self._generate(left, sampling, lambda name, why: starting.append(self.replace([name], why)))
            for pending in starting:
                pending.wait()
            if starting:
                self.refill()
            starting.clear()

    def _generate(
        self, left: dict[str, dict[str, Prompt]], sampling: Sampling, on_death: Callable[[str, str], None]
    ) -> Iterator[RolloutGroup]:
        """Groups from the engines that live; takes the prompts that are answered out of `left`."""
        timeout_s = self._config.rollout.timeout_s

        def begin(name: str) -> Any:
            streaming = self._engines[name].generate.options(num_returns="streaming")
            return streaming.remote(list(left[name].values()), sampling, timeout_s)

        streams = {begin(name): name for name in left}
        while streams:
            ready, _ = ray.wait(list(streams), timeout=timeout_s)
            if not ready:
                for name in streams.values():
                    where = log_of(name, self._logs)
                    on_death(
                        name,
                        f"generate: no answer from {name} within {timeout_s:g} s (rollout.timeout_s)"
                        + (f"; what it was at is in {where}" if where else ""),
                    )
                return
            name = streams[ready[0]]
            try:
                group = ray.get(next(ready[0]))
            except StopIteration:
                del streams[ready[0]], left[name]
            except RayActorError as error:
                del streams[ready[0]]
                on_death(name, f"generate: {name} died: {error}")
            else:
                del left[name][group.prompt.prompt_id]
                yield group

    def kill(self) -> None:
        """Ends all engines at once, whatever they are at; none is started again."""
        self._restarts = self._config.rollout.max_restarts
        for engine in self._engines.values():
            ray.kill(engine)

    def sleep(self) -> None:
        """Leaves the GPUs to the actor, where they are shared: see Engine.sleep."""
        if self.is_colocated:
            self._call("sleep")

    def wake(self, what: str) -> None:
        """Takes the memory of "weights" or of the "kv_cache" again, where GPUs are shared: see Engine.wake."""
        if self.is_colocated:
            self._call("wake", what)

    def start_update(self, names: list[str]) -> None:
        """Tells every engine which weights will come; from here on none generates until `finish_update`."""
        self._call("start_update", names)

    def update(self, manifests: list[BucketManifest]) -> None:
        """Every engine loads one bucket of each stage."""
        what = "load " + " and ".join(manifest.bucket for manifest in manifests)
        self._begin("update", [manifest.to_dict() for manifest in manifests], what=what).wait()

    def finish_update(self, policy_version: int) -> None:
        """Every engine checks that it has all weights, forgets its caches and stamps its rollouts from here on."""
        self._call("finish_update", policy_version)

    def _call(self, verb: str, *arguments: Any) -> list[Any]:
        return self._begin(verb, *arguments, what=verb).wait()

    def _begin(self, verb: str, *arguments: Any, what: str) -> Pending:
        timeout_s = self._config.weights.timeout_s
        refs = {name: engine.call.remote(verb, arguments, timeout_s) for name, engine in self._engines.items()}
        return Pending(what, refs, timeout_s, self._engines, self._logs)


def begin_start(actors: Actors, engines: EngineGroup) -> list[Pending]:
    """Both load the model, side by side. On shared GPUs the actor comes first, and leaves: vLLM counts free memory."""
    building = actors.begin_build()
    if engines.is_colocated:
        building.wait()
        actors.offload()
    return [building, engines.begin_build()]


def _number(name: str) -> int:
    return int(name.rpartition(" ")[2])
