"""The checks of megatron_nft.smoke: one node's actor in a layout, against two oracles; then a step's time."""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_nft.actor.topology import data_parallel_rank, free_address
from megatron_nft.actor.worker import Worker
from megatron_nft.config import Config
from megatron_nft.data.packing import pack
from megatron_nft.smoke.oracles import single_rank, transformers_logprobs
from megatron_nft.smoke.screen import Screen
from megatron_nft.smoke.speed import model_flops, peak_gib, product_flops
from megatron_nft.types import TrainSequence
from megatron_nft.weights.export import finish_hf_folder, hf_folder_in_progress

TOLERANCES = {"fp32": (1e-4, 1e-4), "bf16": (0.05, 0.05)}
"""precision -> largest mean |difference| of log-probs in nats, and largest relative one of loss and gradient norm."""
FP8_TOLERANCE = (0.2, 0.2)
TRAIN_STEPS, TIMED_STEPS = 3, 3


def check_install(config: Config, sequences: Sequence[TrainSequence], screen: Screen) -> int:
    """All checks, on each rank; the number that failed."""
    # The other ranks wait for rank 0 where the process group starts.
    is_first, is_alone = int(os.environ.get("RANK", 0)) == 0, config.actor.world_size == 1
    single = single_rank(config.model.path, config.actor.precision) if is_first and not is_alone else None
    if is_first:
        screen.say(_told(config, sequences))
    smoke = Smoke(config, sequences, single, screen)
    smoke.run()
    if is_first:
        screen.say(f"smoke: {smoke.passed} passed, {smoke.failed} failed")
    num_failed = _gather(smoke.failed)[0]
    smoke.worker.shutdown()
    return num_failed


def measure(config: Config, sequences: Sequence[TrainSequence], out: Path) -> None:
    """What `single_rank` reads: scores and metrics of this process."""
    smoke = Smoke(config, sequences, None, None)
    np.savez(out, scores=smoke.score(), **smoke.train_step())


class Smoke:
    """The checks. Every rank takes part in them, rank 0 judges."""

    def __init__(
        self,
        config: Config,
        sequences: Sequence[TrainSequence],
        single: dict[str, Any] | None,
        screen: Screen | None,
    ) -> None:
        """
        Args:
            screen: of rank 0, for what is found.
            single: scores and metrics of the same program on one rank, for rank 0; None: nothing to compare with.
        """
        self.config, self.sequences, self.single, self.screen = config, sequences, single, screen
        self.rank = int(os.environ.get("RANK", 0))
        self.worker = Worker(config, rank=self.rank, master=_master())
        batch = pack(
            [sequences],
            num_updates=1,
            dp=config.actor.dp,
            tokens_per_microbatch=config.actor.tokens_per_microbatch,
            attention_parity_tokens=self.worker.hf.attention_parity_tokens,
        )
        self.microbatches = list(batch.updates[0][data_parallel_rank(config.actor, self.rank)])
        self.tolerance, self.relative = TOLERANCES.get(config.actor.precision, FP8_TOLERANCE)
        if self.worker.hf.mixture is not None and config.actor.precision != "fp32":
            self.tolerance, self.relative = FP8_TOLERANCE  # a token whose best experts are close goes to others
        self.passed = self.failed = 0

    def score(self) -> np.ndarray:
        """Log-probs of all answer tokens, in the order of `sequences`, on every rank."""
        scores = self.worker.score(self.microbatches)
        own = (
            {}
            if scores is None
            else {
                s.token_ids_T.tobytes(): x
                for s, x in zip([s for m in self.microbatches for s in m.sequences], scores, strict=True)
            }
        )
        merged = {key: value for part in _gather(own) for key, value in part.items()}
        return np.concatenate([merged[s.token_ids_T.tobytes()] for s in self.sequences])

    def train_step(self) -> dict[str, float]:
        """The metrics of one NFT update on the batch, on every rank."""
        return next(m for m in _gather(self.worker.train_step([self.microbatches])) if m is not None)

    def run(self) -> None:
        """All checks."""
        before = self.score()
        self.check_log_probs("log-probs against transformers", before, self.config.model.path)
        first = self.train_step()
        if self.single is not None:
            self.compare(before, first, self.single)
        for _ in range(TRAIN_STEPS - 1):
            last = self.train_step()
        self.check("NFT updates are finite", last["actor/nonfinite_updates"] == 0, f"loss {last['nft/loss']:.4g}")
        after = self.score()
        rights = np.concatenate([np.full(s.num_answer_tokens, s.verdict > 0.5) for s in self.sequences])
        up, down = float((after - before)[rights].mean()), float((after - before)[~rights].mean())
        self.check(
            "right answers likelier than wrong ones", up > down, f"right {up:+.3g}, wrong {down:+.3g} nats/token"
        )
        with tempfile.TemporaryDirectory() as scratch:
            shared = Path(_gather(scratch)[0])
            self.export(shared / "hf")
            self.check_log_probs("exported folder against the trained model", after, str(shared / "hf"))
            self.check_resume(shared / "checkpoint")
            dist.barrier()
        self.time_steps()

    def compare(self, scores: np.ndarray, metrics: dict[str, float], single: dict[str, Any]) -> None:
        """With the same program on one rank."""
        gap = float(np.abs(scores - single["scores"]).mean())
        self.check("log-probs against one rank", gap <= self.tolerance, f"mean |difference| {gap:.2g}")
        gap = abs(metrics["nft/loss"] - float(single["nft/loss"]))
        words = f"{metrics['nft/loss']:.6g}, difference {gap:.2g}"
        self.check("loss against one rank", gap <= self.relative * abs(float(single["nft/loss_right"])), words)
        norm, expected = metrics["actor/grad_norm"], float(single["actor/grad_norm"])
        apart = abs(norm - expected) / expected
        words = f"{norm:.6g}, there {expected:.6g}, relative difference {apart:.2g}"
        self.check("gradient norm against one rank", apart <= self.relative, words)

    def export(self, folder: Path) -> None:
        """Writes the model as an HF folder, from all ranks."""
        with hf_folder_in_progress(folder) if self.rank == 0 else nullcontext() as begun:
            partial = _gather(begun)[0]
            maps = _gather(self.worker.save_hf(str(partial)))
            if self.rank == 0:
                finish_hf_folder(partial, self.config.model.hf_folder, [m for m in maps if m is not None])
        dist.barrier()

    def check_resume(self, folder: Path) -> None:
        """Saves, updates, goes back to what was saved, and updates again: the same update.

        A GPU's attention adds up in another order each time, unless actor.deterministic forbids it.
        """
        if self.rank == 0:
            folder.mkdir()
        dist.barrier()
        self.worker.save(str(folder))
        straight = (self.train_step(), self.score())
        self.worker.load(str(folder))
        resumed = (self.train_step(), self.score())
        gaps = np.abs(straight[1] - resumed[1])
        words = f"log-probs after the next update differ by {gaps.max():.2g} at most"
        if self.config.cluster.device == "cuda" and not self.config.actor.deterministic:
            norms = [metrics["actor/grad_norm"] for metrics in (straight[0], resumed[0])]
            same = gaps.mean() <= self.tolerance and abs(norms[0] - norms[1]) <= self.relative * norms[0]
            words += "; to the last bit with --deterministic only"
        else:
            same = straight[0] == resumed[0] and np.array_equal(straight[1], resumed[1])
        self.check("resumed from a checkpoint", bool(same), words)

    def check_log_probs(self, name: str, scores: np.ndarray, folder: str) -> None:
        """Compares with `transformers`, in fp32, on rank 0."""
        words, passed = "", True
        if self.rank == 0:
            gaps = np.abs(scores - transformers_logprobs(folder, self.sequences, self.worker.topology.device))
            passed = bool(gaps.mean() <= self.tolerance)
            words = f"{len(gaps)} answer tokens, mean |difference| {gaps.mean():.2g}, max {gaps.max():.2g}"
        self.check(name, passed, words)

    def check(self, name: str, passed: bool, words: str) -> None:
        """Counts and prints, on rank 0."""
        if self.rank == 0:
            self.passed, self.failed = self.passed + passed, self.failed + (not passed)
            self.screen.say(f"{'ok  ' if passed else 'FAIL'} {name}: {words}")

    def time_steps(self) -> None:
        """Tokens/s and model TFLOP/s of forward, backward and update, beside the device's own products."""
        seconds = []
        for _ in range(TIMED_STEPS):
            dist.barrier()
            start = time.perf_counter()
            self.train_step()
            seconds.append(time.perf_counter() - start)
        tokens = sum(s.num_tokens for s in self.sequences)
        second = statistics.median(seconds)
        flops = model_flops(self.worker.hf, self.sequences) / second
        dist.barrier()
        peak = sum(_gather(product_flops(self.worker.topology.device, self.config.actor.precision)))
        memory = max(_gather(peak_gib(self.worker.topology.device)))
        if self.rank == 0:
            speed = f"{tokens / second:,.0f} tokens/s, {flops / 1e12:.3g} model TFLOP/s"
            share = f"{flops / peak:.0%} of the {peak / 1e12:.3g} that plain products reach on all ranks at once"
            self.screen.say(f"step: {tokens} tokens in {second:.3g} s (median of {TIMED_STEPS}): {speed}, {share}")
            self.screen.say(f"memory: at most {memory:.2f} GiB on a rank")


def _told(config: Config, sequences: Sequence[TrainSequence]) -> str:
    """What is about to be checked."""
    actor, tokens = config.actor, sum(s.num_tokens for s in sequences)
    ranks = f"{actor.world_size} rank{'s' if actor.world_size > 1 else ''} ({actor.layout})"
    return (
        f"smoke: {ranks}, {actor.precision}, {config.cluster.device} | model {config.model.path} | "
        f"{len(sequences)} answers of {tokens} tokens, {TRAIN_STEPS} NFT updates, then {TIMED_STEPS} timed"
    )


def _gather(value: Any) -> list[Any]:
    """What every rank has, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _master() -> str:
    """torchrun's meeting point, or one of this process alone."""
    if "MASTER_ADDR" in os.environ:
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return free_address()
