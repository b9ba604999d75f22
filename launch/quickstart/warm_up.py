"""Warms the quickstart's base model up on demonstrations, with the project's own Megatron actor in this one process.

NFT with every verdict "right", neg_weight 0, normalize 0 and old log-probs 0 is supervised fine-tuning: its loss is the
mean of -log pi over answer tokens. So demonstrations go in as ordinary microbatches. Called by make_assets.py.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_nft.actor.topology import free_address
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

SEQUENCES_PER_UPDATE = 32
TOKENS_PER_MICROBATCH = 1024
"""Small enough to stay in a CPU's cache."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the warm-up: what is learned, for how long, how fast."""

    name: str
    stories: Iterator[Texts]
    updates: int
    learning_rate: float
    drills_share: float
    """Share of sheets of sums among the sequences."""
    learns_prompts: bool
    """Whether the prompt's tokens are learned too, as in pretraining; else the answer's only."""
    decay_from: float = 0.6
    """Share of the updates after which the learning rate falls, linearly, to nearly 0."""

    def learning_rate_of(self, update: int) -> float:
        """The rate of update 0, 1, ..."""
        return self.learning_rate * min(1.0, (self.updates - update) / (self.updates * (1 - self.decay_from)))


def warm_up(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    stages: Sequence[Stage],
    drills: Iterator[Texts],
    *,
    seed: int,
    tell: Callable[[str], None] = print,
) -> None:
    """Trains the HF folder's model through the stages, and writes it back in fp32."""
    worker = Worker(_config(folder, stages[0], seed), rank=0, master=free_address())
    began, tokens = time.monotonic(), 0
    for stage in stages:
        loss = None
        for update in range(stage.updates):
            num_drills = round(stage.drills_share * SEQUENCES_PER_UPDATE)
            texts = [*islice(drills, num_drills), *islice(stage.stories, SEQUENCES_PER_UPDATE - num_drills)]
            sequences = [_sequence(tokenizer, *text, learns_prompt=stage.learns_prompts) for text in texts]
            batch = pack(
                [sequences],
                num_updates=1,
                dp=1,
                tokens_per_microbatch=TOKENS_PER_MICROBATCH,
                attention_parity_tokens=worker.hf.attention_parity_tokens,
            )
            for group in worker.optimizer.param_groups:
                group["max_lr"] = stage.learning_rate_of(update)  # Megatron's schedule reads the peak rate from here
            metrics = worker.train_step([batch.updates[0][0]])
            tokens += sum(s.num_tokens for s in sequences)
            loss = metrics["nft/loss"] if loss is None else 0.98 * loss + 0.02 * metrics["nft/loss"]
            if (update + 1) % 50 == 0:
                seconds = time.monotonic() - began
                speed = f"{tokens / seconds:,.0f} tokens/s, {seconds:.0f} s"
                tell(f"{stage.name}: update {update + 1}/{stage.updates}, loss {loss:.3f}, {speed}")
    with hf_folder_in_progress(folder) as partial:
        finish_hf_folder(partial, folder, [worker.save_hf(str(partial))])
    worker.shutdown()


def _config(folder: Path, first: Stage, seed: int) -> Config:
    return Config(
        run=RunConfig(seed=seed),
        model=ModelConfig(path=str(folder)),
        data=DataConfig(train=["demonstrations"]),  # made here, never read
        rollout=RolloutConfig(dtype="float32"),
        algorithm=AlgorithmConfig(neg_weight=0, normalize=0),
        actor=ActorConfig(precision="fp32", tokens_per_microbatch=TOKENS_PER_MICROBATCH),
        optimizer=OptimizerConfig(learning_rate=first.learning_rate, warmup_updates=50, weight_decay=0.1, beta2=0.98),
        cluster=ClusterConfig(device="cpu"),
    )


def _sequence(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, *, learns_prompt: bool) -> TrainSequence:
    messages = [{"role": "user", "content": prompt}]
    prompt_ids = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    answer_ids = [*tokenizer.encode(answer), tokenizer.eos_token_id]
    num_prompt_tokens = 1 if learns_prompt else len(prompt_ids)
    token_ids = np.array([*prompt_ids, *answer_ids], np.int32)
    nothing_A = np.zeros(len(token_ids) - num_prompt_tokens, np.float32)
    return TrainSequence(
        token_ids_T=token_ids,
        num_prompt_tokens=num_prompt_tokens,
        verdict=1.0,
        correct_rate=0.5,  # without effect at normalize 0
        engine_logprobs_A=nothing_A,
        old_logprobs_A=nothing_A,  # so the log of the ratio is the log-prob itself
    )
