"""Warms the quickstart's base model up on demonstrations, with the project's own Megatron actor in this one process.

NFT with every verdict "right", neg_weight 0, normalize 0 and old log-probs 0 is supervised fine-tuning: its loss is the
mean of -log pi over answer tokens. So demonstrations go in as ordinary microbatches. Called by make_assets.py.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from socket import socket

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_nft.actor.worker import Worker
from megatron_nft.config import (
    ActorConfig,
    AlgorithmConfig,
    ClusterConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
)
from megatron_nft.data.packing import pack
from megatron_nft.types import TrainSequence
from megatron_nft.weights.export import finish_hf_folder, hf_folder_in_progress

Texts = tuple[str, str]
"""A prompt and its answer."""


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """How long, how fast, and on what."""

    updates: int = 900
    sequences_per_update: int = 32
    learning_rate: float = 3e-3
    warmup_updates: int = 50
    decay_from: float = 0.5
    """Share of the updates after which the learning rate falls, linearly, to nearly 0."""
    drills_until: float = 0.6
    """Share of the updates that see drills besides stories."""
    drills_share: float = 0.6
    """Share of drills in those updates."""
    tokens_per_microbatch: int = 1024
    """Small enough to stay in a CPU's cache."""

    def drills_in(self, update: int) -> int:
        return round(self.sequences_per_update * self.drills_share) if update < self.drills_until * self.updates else 0

    def learning_rate_of(self, update: int) -> float:
        """The rate after Megatron's own warm-up."""
        left = (self.updates - update) / (self.updates * (1 - self.decay_from))
        return self.learning_rate * min(1.0, left)


def warm_up(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    stories: Iterator[Texts],
    drills: Iterator[Texts],
    *,
    plan: WarmUp,
    seed: int,
    tell: Callable[[str], None] = print,
) -> None:
    """Trains the HF folder's model on prompts and answers, and writes it back in fp32."""
    worker = Worker(_config(folder, plan, seed), rank=0, master=f"127.0.0.1:{_free_port()}")
    began, tokens, loss = time.monotonic(), 0, float("nan")
    for update in range(plan.updates):
        num_drills = plan.drills_in(update)
        texts = [*islice(drills, num_drills), *islice(stories, plan.sequences_per_update - num_drills)]
        sequences = [_sequence(tokenizer, prompt, answer) for prompt, answer in texts]
        batch = pack([sequences], num_updates=1, dp=1, tokens_per_microbatch=plan.tokens_per_microbatch)
        for group in worker.optimizer.param_groups:
            group["max_lr"] = plan.learning_rate_of(update)  # Megatron's schedule reads the peak rate from here
        metrics = worker.train_step([batch.updates[0][0]])
        tokens += sum(s.num_tokens for s in sequences)
        loss = metrics["nft/loss"] if update == 0 else 0.98 * loss + 0.02 * metrics["nft/loss"]
        if (update + 1) % 50 == 0:
            seconds = time.monotonic() - began
            speed = tokens / seconds
            tell(f"update {update + 1}/{plan.updates}: loss {loss:.3f}, {speed:,.0f} tokens/s, {seconds:.0f} s")
    with hf_folder_in_progress(folder) as partial:
        finish_hf_folder(partial, folder, [worker.save_hf(str(partial))])
    worker.shutdown()


def _config(folder: Path, plan: WarmUp, seed: int) -> Config:
    return Config(
        run=RunConfig(seed=seed),
        model=ModelConfig(path=str(folder)),
        data=DataConfig(train=["demonstrations"]),  # made here, never read
        rollout=RolloutConfig(dtype="float32"),
        algorithm=AlgorithmConfig(neg_weight=0, normalize=0),
        actor=ActorConfig(precision="fp32", tokens_per_microbatch=plan.tokens_per_microbatch),
        optimizer=OptimizerConfig(
            learning_rate=plan.learning_rate, warmup_updates=plan.warmup_updates, weight_decay=0.1, beta2=0.98
        ),
        cluster=ClusterConfig(device="cpu"),
    )


def _sequence(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> TrainSequence:
    messages = [{"role": "user", "content": prompt}]
    prompt_ids = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    answer_ids = [*tokenizer.encode(answer), tokenizer.eos_token_id]
    return TrainSequence(
        token_ids_T=np.array([*prompt_ids, *answer_ids], np.int32),
        num_prompt_tokens=len(prompt_ids),
        verdict=1.0,
        correct_rate=0.5,  # without effect at normalize 0
        engine_logprobs_A=np.zeros(len(answer_ids), np.float32),
    )


def _free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
