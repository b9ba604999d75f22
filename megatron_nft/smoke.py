"""Proves one node's install under torchrun, without Ray and vLLM: the actor in a layout, against two oracles.

    torchrun --nproc-per-node 4 -m megatron_nft.smoke --tp 2 --pp 2 [--cp 2] [--precision bf16] [--model DIR]

Data parallelism takes the ranks that remain. Checks, each a line: log-probs against `transformers`; loss, gradient norm
and log-probs against the same program on one rank; that NFT steps make right answers likelier and wrong ones less so;
that the exported HF folder is the trained model. Then times a step. Ends with `smoke: N passed, M failed`; exit status
0 if none failed, 1 if some did, 2 if the arguments don't fit. Saving and resuming is not among the checks yet.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_nft.actor.topology import data_parallel_rank, free_address
from megatron_nft.actor.worker import Worker
from megatron_nft.config import (
    ActorConfig,
    ClusterConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RecipeError,
    RolloutConfig,
    check_layout,
)
from megatron_nft.data.packing import pack
from megatron_nft.families.hf_config import HFConfig, ModelFolderError, read_hf_config
from megatron_nft.observe.batches import load_batch
from megatron_nft.types import TrainSequence
from megatron_nft.weights.export import finish_hf_folder, hf_folder_in_progress

MODEL, BATCH = "tests/assets/quickstart/model", "tests/assets/quickstart/batch.npz"
TOLERANCES = {"fp32": (1e-4, 1e-4), "bf16": (0.05, 0.05)}
"""precision -> largest mean |difference| of log-probs in nats, and largest relative one of loss and gradient norm."""
FP8_TOLERANCE = (0.2, 0.2)
TRAIN_STEPS, TIMED_STEPS = 3, 3


class Smoke:
    """The checks. Every rank takes part in them, rank 0 judges."""

    def __init__(self, config: Config, sequences: Sequence[TrainSequence], single: dict[str, Any] | None) -> None:
        """
        Args:
            single: scores and metrics of the same program on one rank, for rank 0; None: nothing to compare with.
        """
        self.config, self.sequences, self.single = config, sequences, single
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
        """Saves, updates, goes back to what was saved, and updates again: the same update, to the last bit."""
        if self.rank == 0:
            folder.mkdir()
        dist.barrier()
        self.worker.save(str(folder))
        straight = (self.train_step(), self.score())
        self.worker.load(str(folder))
        resumed = (self.train_step(), self.score())
        same = straight[0] == resumed[0] and np.array_equal(straight[1], resumed[1])
        gap = float(np.abs(straight[1] - resumed[1]).max())
        self.check(
            "resumed from a checkpoint", same, f"largest difference of log-probs after the next update {gap:.2g}"
        )

    def check_log_probs(self, name: str, scores: np.ndarray, folder: str) -> None:
        """Compares with `transformers`, in fp32, on rank 0."""
        words, passed = "", True
        if self.rank == 0:
            gaps = np.abs(scores - _transformers_logprobs(folder, self.sequences, self.worker.topology.device))
            passed = bool(gaps.mean() <= self.tolerance)
            words = f"{len(gaps)} answer tokens, mean |difference| {gaps.mean():.2g}, max {gaps.max():.2g}"
        self.check(name, passed, words)

    def check(self, name: str, passed: bool, words: str) -> None:
        """Counts and prints, on rank 0."""
        if self.rank == 0:
            self.passed, self.failed = self.passed + passed, self.failed + (not passed)
            print(f"{'ok  ' if passed else 'FAIL'} {name}: {words}", flush=True)

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
        flops = _model_flops(self.worker.hf, self.sequences) / second
        dist.barrier()
        peak = sum(_gather(_product_flops(self.worker.topology.device, self.config.actor.precision)))
        memory = max(_gather(_peak_gib(self.worker.topology.device)))
        if self.rank == 0:
            speed = f"{tokens / second:,.0f} tokens/s, {flops / 1e12:.3g} model TFLOP/s"
            share = f"{flops / peak:.0%} of the {peak / 1e12:.3g} that plain products reach on all ranks at once"
            print(f"step: {tokens} tokens in {second:.3g} s (median of {TIMED_STEPS}): {speed}, {share}", flush=True)
            print(f"memory: at most {memory:.2f} GiB on a rank", flush=True)


def _gather(value: Any) -> list[Any]:
    """What every rank has, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _transformers_logprobs(folder: str, sequences: Sequence[TrainSequence], device: torch.device) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    found = []
    with torch.no_grad():
        for sequence in sequences:
            tokens = torch.from_numpy(sequence.token_ids_T).long().to(device)
            first = sequence.num_prompt_tokens
            logprobs = torch.log_softmax(model(tokens[None]).logits[0, first - 1 : -1], -1)
            found.append(logprobs.gather(1, tokens[first:, None])[:, 0].cpu().numpy())
    return np.concatenate(found)


def _model_flops(hf: HFConfig, sequences: Sequence[TrainSequence]) -> float:
    """Of forward and backward: 6 per parameter of a product and token, and causal attention's 6 L H d t^2."""
    parameters = hf.num_hidden_layers * hf.layer_parameters + hf.hidden_size * hf.vocab_size
    attention = 6 * hf.num_hidden_layers * hf.num_attention_heads * hf.head_dim
    return sum(6 * parameters * s.num_tokens + attention * s.num_tokens**2 for s in sequences)


def _product_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, in the parameters' format (so FP8 may pass 100%)."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _master() -> str:
    """torchrun's meeting point, or one of this process alone."""
    if "MASTER_ADDR" in os.environ:
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return free_address()


def _sequences(model: str, hf: HFConfig) -> list[TrainSequence]:
    """32 answers of the stored batch for its own model; random tokens, scored as a uniform guess, for any other.

    The stored old log-probs are moved, so that ratios differ from 1 and the loss from 0.
    """
    if Path(model) == Path(MODEL):
        stored = load_batch(Path(BATCH))[0][:32]
        moves = [0.1 * np.cos(np.arange(s.num_answer_tokens, dtype=np.float32)) for s in stored]
        return [replace(s, old_logprobs_A=s.old_logprobs_A + m) for s, m in zip(stored, moves, strict=True)]
    numbers = np.random.default_rng(0)
    return [
        TrainSequence(
            token_ids_T=numbers.integers(0, hf.vocab_size, length).astype(np.int32),
            num_prompt_tokens=length // 3,
            verdict=float(index % 2),
            correct_rate=0.5,
            engine_logprobs_A=np.zeros(length - length // 3, np.float32),
            old_logprobs_A=np.full(length - length // 3, -np.log(hf.vocab_size), np.float32),
        )
        for index, length in enumerate(numbers.integers(min(64, hf.max_position_embeddings // 2), 257, 16).tolist())
    ]


def _config(arguments: argparse.Namespace, world_size: int) -> Config:
    """Raises RecipeError where the layout doesn't fit the ranks or the model."""
    replica = arguments.tp * arguments.pp * arguments.cp
    if world_size % replica:
        raise RecipeError(
            f"tp {arguments.tp} x pp {arguments.pp} x cp {arguments.cp} = {replica} does not divide the {world_size} "
            "ranks of torchrun; change --nproc-per-node or the layout"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = Config(
            model=ModelConfig(path=arguments.model),
            data=DataConfig(train=["none"], max_prompt_tokens=128),
            rollout=RolloutConfig(dtype="float32" if device == "cpu" else "bfloat16", max_answer_tokens=172),
            actor=ActorConfig(
                tp=arguments.tp,
                pp=arguments.pp,
                vpp=arguments.vpp,
                cp=arguments.cp,
                dp=world_size // replica,
                sequence_parallel=arguments.tp > 1,
                precision=arguments.precision or ("fp32" if device == "cpu" else "bf16"),
                tokens_per_microbatch=1024,
            ),
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_updates=0),
            cluster=ClusterConfig(device=device),
        )
    except ValueError as error:
        raise RecipeError(str(error)) from None
    check_layout(config, read_hf_config(arguments.model))
    return config


def _single_rank(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs this program on one rank, in a process of its own, for the comparison."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "single.npz"
        ours = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        precision = ["--precision", arguments.precision] if arguments.precision else []
        command = [sys.executable, "-m", "megatron_nft.smoke", "--model", arguments.model, *precision]
        subprocess.run([*command, "--measure", str(out)], env=environment, check=True)
        with np.load(out) as file:
            return dict(file)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m megatron_nft.smoke",
        description="Checks the actor of one node in a parallel layout; data parallelism takes the ranks that remain.",
        epilog="example: torchrun --nproc-per-node 4 -m megatron_nft.smoke --tp 2 --pp 2",
    )
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size, with sequence parallelism")
    parser.add_argument("--pp", type=int, default=1, help="pipeline-parallel size")
    parser.add_argument("--vpp", type=int, default=1, help="virtual pipeline stages per rank")
    parser.add_argument("--cp", type=int, default=1, help="context-parallel size")
    parser.add_argument("--precision", help="fp32, bf16, fp8-blockwise ... (default: bf16 on CUDA, fp32 on a CPU)")
    parser.add_argument("--model", default=MODEL, help=f"HF folder (default: {MODEL})")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    try:
        config = _config(arguments, world_size)
        sequences = _sequences(arguments.model, read_hf_config(arguments.model))
    except (RecipeError, ModelFolderError) as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.measure:
        smoke = Smoke(config, sequences, None)
        np.savez(arguments.measure, scores=smoke.score(), **smoke.train_step())
        return 0
    # The other ranks wait for rank 0 where the process group starts.
    single = _single_rank(arguments) if world_size > 1 and rank == 0 else None
    smoke = Smoke(config, sequences, single)
    smoke.run()
    if rank == 0:
        print(f"smoke: {smoke.passed} passed, {smoke.failed} failed", flush=True)
    num_failed = _gather(smoke.failed)[0]
    smoke.worker.shutdown()
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
