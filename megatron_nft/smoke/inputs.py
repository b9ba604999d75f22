"""What is checked: a recipe for the ranks that are there, and answers to train on. Loads no torch."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

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
from megatron_nft.config.errors import explain
from megatron_nft.families.hf_config import HFConfig, read_hf_config
from megatron_nft.observe.batches import load_batch
from megatron_nft.types import TrainSequence

MODEL, BATCH = "tests/assets/quickstart/model", "tests/assets/quickstart/batch.npz"


def check_ranks(arguments: argparse.Namespace, world_size: int, *, starts: bool) -> None:
    """Raises RecipeError if the layout doesn't divide the ranks, before anything is started.

    Args:
        starts: the ranks are `--ranks`, which this process is to start.
    """
    replica = arguments.tp * arguments.pp * arguments.cp
    layout = f"tp {arguments.tp} x pp {arguments.pp} x cp {arguments.cp} = {replica}"
    if world_size > 0 and world_size % replica == 0:
        return
    if starts:
        raise RecipeError(f"{layout} does not divide --ranks {world_size}; change either")
    if "RANK" not in os.environ:
        raise RecipeError(f"{layout} takes as many processes, and this is one; give --ranks {replica}")
    raise RecipeError(
        f"{layout} does not divide the {world_size} ranks of torchrun; change --nproc-per-node or the layout"
    )


def make_config(arguments: argparse.Namespace, world_size: int, device: str) -> Config:
    """The recipe for these ranks; data parallelism takes those that remain.

    Raises:
        RecipeError: the layout doesn't fit the model.
    """
    replica = arguments.tp * arguments.pp * arguments.cp
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
                ep=arguments.ep,
                etp=arguments.etp,
                dp=world_size // replica,
                sequence_parallel=arguments.tp > 1,
                precision=arguments.precision or ("fp32" if device == "cpu" else "bf16"),
                tokens_per_microbatch=1024,
                deterministic=arguments.deterministic,
            ),
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_updates=0),
            cluster=ClusterConfig(device=device),
        )
    except ValidationError as error:
        raise RecipeError("; ".join(explain(problem, Config).strip() for problem in error.errors())) from None
    check_layout(config, read_hf_config(arguments.model))
    return config


def make_sequences(model: str, hf: HFConfig) -> list[TrainSequence]:
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
