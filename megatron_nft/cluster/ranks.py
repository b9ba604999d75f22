"""The actor's ranks as processes: one verb, called on all of them, with a deadline.

The driver holds `Actors` (Megatron ranks, actor/worker.py), which look to train.py like one object; who runs where
comes from cluster/placement.py. A rank that fails ends the wait of all others at once, with its own error.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray

from megatron_nft.actor.manifest import CheckpointError, read_manifest, shares
from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.cluster.connections import connections, device_generation
from megatron_nft.cluster.elsewhere import bring
from megatron_nft.cluster.placement import Placement
from megatron_nft.cluster.processes import Pending, Process, log_of, watchdog
from megatron_nft.cluster.usage import Usage, fetch
from megatron_nft.config import Config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.lora import peft_config
from megatron_nft.rollout.vllm.environment import HUGE_PAGES
from megatron_nft.types import TrainBatch
from megatron_nft.weights.export import finish_adapter_folder, finish_hf_folder, hf_folder_in_progress
from megatron_nft.weights.wire import BucketManifest

ON_BATCHES = ("score", "score_reference", "train_step")
"""Verbs whose first argument is a rank's microbatches."""


class _ActorRank(Process):
    """Runs in the rank's own process."""

    worker: Any = None

    def prepare(self) -> None:
        """Imports what a rank is made of: all do so side by side, and none waits for the first one's address."""
        import megatron_nft.actor.worker  # noqa: F401

    def address(self) -> str:
        """ "host:port" at which this process can be the meeting point of all ranks."""
        from megatron_nft.actor.topology import free_address

        return free_address(ray.util.get_node_ip_address())

    def build(self, config: Config, rank: int, master: str) -> None:
        from megatron_nft.actor.worker import Worker

        with watchdog(config.cluster.start_timeout_s):
            another_runs, self.worker = self.worker, None  # gone, even if this one's fails
            if another_runs is not None:
                another_runs.shutdown()
                del another_runs
                gc.collect()
            self.worker = Worker(config, rank=rank, master=master)

    def call(self, verb: str, arguments: tuple, timeout_s: float) -> Any:
        with watchdog(timeout_s), self.log.during(verb):
            if verb in ON_BATCHES:
                arguments = (bring(arguments[0]), *arguments[1:])
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
        environment = {"OMP_NUM_THREADS": str(config.cluster.threads_per_process)}
        if config.cluster.device == "cpu":
            environment |= HUGE_PAGES  # 4% less CPU time of an update
        environment |= connections(tp=config.actor.tp, cp=config.actor.cp, generation=self._device_generation)
        ranks = {
            (name := f"actor rank {rank}"): ray.remote(_ActorRank)
            .options(**placement.actor_options(rank), runtime_env={"env_vars": environment})
            .remote(log_of(name, self._logs))
            for rank in range(config.actor.world_size)
        }
        for rank in ranks.values():
            rank.prepare.remote()  # what is wrong with it, `build` will say
        return ranks

    @cached_property
    def _device_generation(self) -> int | None:
        """Asked on a node that has ranks; the driver's may have no GPU. All are taken to have the same."""
        if self._config.cluster.device != "cuda":
            return None
        ask = ray.remote(device_generation).options(**self._placement.task_options(0))
        return ray.get(ask.remote(), timeout=self._config.cluster.start_timeout_s)

    def restart(self, config: Config) -> None:
        """Ends the ranks' processes and starts new ones, for another run in the same place; `begin_build` follows.

        New ones, since gloo's threads outlive the process groups they served, and poll.
        """
        self.kill()
        self._forget(config)
        self._ranks = self._start()

    def reuse(self, config: Config) -> None:
        """Has the ranks that live serve another run, of as many ranks; `begin_build` follows. Faster than `restart`."""
        assert config.actor.world_size == len(self._ranks), "one process a rank"
        self._forget(config)

    def _forget(self, config: Config) -> None:
        self._config = config
        for known in ("weight_names", "_rounds"):
            self.__dict__.pop(known, None)  # of the model before

    def kill(self) -> None:
        """Ends all ranks at once, whatever they are at."""
        for rank in self._ranks.values():
            ray.kill(rank)

    def ping(self, timeout_s: float) -> None:
        """Waits until every rank has done what it was at, and answers. Raises ProcessLost."""
        refs = {name: rank.ping.remote() for name, rank in self._ranks.items()}
        Pending("ping", refs, timeout_s, self._ranks, self._logs).wait()

    def usage(self) -> dict[str, Usage]:
        """Of each rank since the last call."""
        return fetch(self._ranks)

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

    def score_later(self, batch: TrainBatch) -> TrainBatch:
        """As `score`, but for the first update's old_logprobs, which `train_step` finds by itself: unless it leaves out
        inputs that scoring has."""
        if self._config.lora.dropout:
            return self.score(batch)
        first, later = TrainBatch(updates=batch.updates[:1]), TrainBatch(updates=batch.updates[1:])
        if later.updates:
            later = self._scored(later, "score", "old_logprobs_A")
        return self.score_reference(TrainBatch(updates=first.updates + later.updates))

    def score_reference(self, batch: TrainBatch) -> TrainBatch:
        """The batch with reference_logprobs set, if the loss asks for them."""
        if self._config.algorithm.kl_weight:
            batch = self._scored(batch, "score_reference", "reference_logprobs_A")
        return batch

    def _scored(self, batch: TrainBatch, verb: str, field: str) -> TrainBatch:
        shares = [[m for update in batch.updates for m in update[d]] for d in range(self._config.actor.dp)]
        return self._with(batch, self._call_by_replica(verb, shares), field)

    def _with(self, batch: TrainBatch, answers: Sequence[list[np.ndarray] | None], field: str) -> TrainBatch:
        """The batch with what the ranks say of each replica's sequences."""
        values = {
            data_parallel_rank(self._config.actor, rank): iter(answer)
            for rank, answer in enumerate(answers)
            if answer is not None
        }
        return batch.map_sequences(lambda s, replica: replace(s, **{field: next(values[replica])}))

    def train_step(self, batch: TrainBatch, step: int | None = None) -> tuple[dict[str, float], TrainBatch]:
        """All optimizer updates of a batch whose later updates are scored, at least; `step` as of Worker.train_step.

        Returns:
            Their metrics, and the batch with the first update scored, too.
        """
        shares = [[update[d] for update in batch.updates] for d in range(self._config.actor.dp)]
        answers = self._call_by_replica("train_step", shares, step)
        metrics = next(answer for answer in answers if answer is not None)
        if any(s.old_logprobs_A is None for s in TrainBatch(updates=batch.updates[:1]).sequences):
            batch = TrainBatch(updates=self.first_update(batch).updates + batch.updates[1:])
        return metrics, batch

    def first_update(self, batch: TrainBatch) -> TrainBatch:
        """The first update of the batch that was trained last, with the actor's log-probs of before it."""
        first = TrainBatch(updates=batch.updates[:1])
        return self._with(first, self._call("first_logprobs"), "old_logprobs_A")

    @cached_property
    def weight_names(self) -> list[str]:
        """HF names of all weights that a sync sends."""
        return [name for names in self._call("weight_names") if names is not None for name in names]

    @property
    def num_rounds(self) -> int:
        """`begin_send`s of a sync."""
        return max(self._rounds.values())

    @cached_property
    def _rounds(self) -> dict[str, int]:
        """Of each rank: 0 of those that send nothing."""
        return dict(zip(self._ranks, self._call("num_rounds"), strict=True))

    def begin_send(self, index: int, link: int) -> "PendingManifests":
        """Puts one bucket of every stage on the wire; ranks that send nothing hear nothing of it."""
        what, timeout_s = f"send bucket {index} of each stage", self._config.weights.timeout_s
        senders = {name: self._ranks[name] for name, rounds in self._rounds.items() if rounds}
        refs = {name: rank.call.remote("send_bucket", (index, link), timeout_s) for name, rank in senders.items()}
        return PendingManifests(Pending(what, refs, timeout_s, self._ranks, self._logs))

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
        """Writes the model as a complete HF folder; an earlier one is replaced once the new one is whole.

        Adapters are added to its weights, and stand alone in a PEFT folder beside it: adapter, for hf."""
        if self._config.lora.rank:
            self.save_adapter(folder.with_name(folder.name.replace("hf", "adapter", 1)))
        with hf_folder_in_progress(folder) as partial:
            weight_maps = self._call("save_hf", str(partial))
            finish_hf_folder(partial, self._config.model.hf_folder, [m for m in weight_maps if m is not None])

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapters as a PEFT folder, likewise."""
        lora, model = self._config.lora, self._config.model
        with hf_folder_in_progress(folder) as partial:
            weight_maps = self._call("save_adapter", str(partial))
            about = peft_config(
                read_hf_config(model.path), lora.adapters, base=str(model.hf_folder.resolve()), dropout=lora.dropout
            )
            finish_adapter_folder(partial, about, [m for m in weight_maps if m is not None])

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

    def _call_by_replica(self, verb: str, shares: Sequence[Any], *more: Any) -> list[Any]:
        """Calls `verb` on all ranks, with the share of each rank's data-parallel replica, and what all get."""
        stored = [ray.put((share, *more)) for share in shares]
        arguments = [stored[data_parallel_rank(self._config.actor, rank)] for rank in range(len(self._ranks))]
        return self._begin_each(verb, arguments, what=verb, timeout_s=self._config.actor.timeout_s).wait()
