"""One stored batch: what a run scored is reproduced; bf16 and a sequence's likelihood ratio in other layouts.

tests/assets/quickstart/batch.npz is the first training batch of a quickstart run (launch/quickstart/README.md). That
no layout changes a log-prob, a gradient or a weight in fp32 is shown by test_parity.py.
"""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from megatron_nft.observe.batches import load_batch
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel
ASSETS = Path("tests/assets/quickstart")


def stored_sequences():
    """A quarter of the first update and one of the second: right and wrong answers of 4 groups."""
    return [update[:32] for update in load_batch(ASSETS / "batch.npz")[:2]]


def train_on_stored_batch(rank, master, overrides):
    """Scores two updates and trains on the first; returns what the rank has to say."""
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    config = load_config("launch/recipes/quickstart.toml", ["actor.tp=1", *overrides])
    worker = Worker(config, rank=rank, master=master)
    batch = pack(
        stored_sequences(), num_updates=2, dp=config.actor.dp, tokens_per_microbatch=config.actor.tokens_per_microbatch
    )
    replica = data_parallel_rank(config.actor, rank)
    updates = [update[replica] for update in batch.updates]
    scores = worker.score([m for update in updates for m in update])
    sequences = [s for update in updates for m in update for s in m.sequences]
    scored = {} if scores is None else {s.token_ids_T.tobytes(): x for s, x in zip(sequences, scores, strict=True)}
    # The stored old_logprobs, moved, so that ratios differ from 1 and some are clamped.
    moved = [replace(m, sequences=tuple(_moved(s) for s in m.sequences)) for m in updates[0]]
    metrics = worker.train_step([moved])
    worker.shutdown()
    return scored, metrics


def _moved(sequence):
    shift = 0.3 * np.cos(np.arange(sequence.num_answer_tokens) + sequence.num_tokens)
    return replace(sequence, old_logprobs_A=(sequence.old_logprobs_A + shift).astype(np.float32))


@cache
def outcome(*overrides):
    axes = dict(o.split("=") for o in overrides if o.startswith(("actor.tp", "actor.pp")))
    ranks = run_ranks(math.prod(map(int, axes.values())), train_on_stored_batch, overrides)
    scored = {tokens: scores for rank in ranks for tokens, scores in rank[0].items()}
    metrics = [rank[1] for rank in ranks if rank[1] is not None]
    assert len(metrics) == 1, "one rank speaks"
    return scored, metrics[0]


def test_a_ratio_per_sequence_too():
    algorithm = "algorithm.ratio_type=sequence"
    _, metrics = outcome(algorithm, "actor.tp=2", "actor.pp=2", "actor.tokens_per_microbatch=200")
    _, oracle = outcome(algorithm)
    for name, expected in oracle.items():
        # A sequence's ratio is the exp of a sum over its tokens, and so are its rounding errors.
        assert metrics[name] == pytest.approx(expected, rel=1e-4, abs=1e-7), name


def test_bf16_layouts_agree_to_bf16():
    _, oracle = outcome()
    for overrides in (["actor.precision=bf16"], ["actor.precision=bf16", "actor.tp=2"]):
        _, metrics = outcome(*overrides)
        assert metrics["nft/loss"] == pytest.approx(oracle["nft/loss"], abs=5e-3)
        assert metrics["actor/grad_norm"] == pytest.approx(oracle["actor/grad_norm"], rel=0.05)


def test_old_log_probs_of_the_stored_run_are_reproduced():
    """What the quickstart's actor (tp=2) stored is what any layout computes today."""
    scored, _ = outcome()
    stored = [s for update in stored_sequences() for s in update]
    assert max(np.abs(scored[s.token_ids_T.tobytes()] - s.old_logprobs_A).max() for s in stored) < 1e-5
