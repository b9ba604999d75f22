"""One stored batch through every layout: the same log-probs, loss, gradient norm and weights.

tests/assets/quickstart/batch.npz is the first training batch of a quickstart run (launch/quickstart/README.md).
"""

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
# With Adam's usual eps a gradient of 1e-9 moves its weight as far as one of 1e-1, rounding and all; with this one a
# weight moves in proportion to its gradient, so that equal weights mean equal gradients.
OPTIMIZER = ["optimizer.learning_rate=1e-2", "optimizer.eps=1e-2"]


def stored_sequences():
    """A quarter of the first update and one of the second: right and wrong answers of 4 groups."""
    return [update[:32] for update in load_batch(ASSETS / "batch.npz")[:2]]


def train_on_stored_batch(rank, master, overrides):
    """Scores two updates and trains on them; returns what the rank has to say, and its weights."""
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    config = load_config("launch/recipes/quickstart.toml", ["actor.tp=1", *OPTIMIZER, *overrides])
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
    moved = [[replace(m, sequences=tuple(_moved(s) for s in m.sequences)) for m in update] for update in updates]
    first = worker.train_step(moved[:1])
    worker.train_step(moved[1:])
    weights = {}
    for index in range(worker.num_buckets()):
        weights |= {name: tensor.float().numpy() for name, tensor in worker._gather(index, torch.float32).items()}
    worker.shutdown()
    return scored, first, weights


def _moved(sequence):
    shift = 0.3 * np.cos(np.arange(sequence.num_answer_tokens) + sequence.num_tokens)
    return replace(sequence, old_logprobs_A=(sequence.old_logprobs_A + shift).astype(np.float32))


@cache
def outcome(*overrides):
    layout = {
        key: int(value)
        for key, _, value in (o.partition("=") for o in overrides)
        if key in ("actor.tp", "actor.pp", "actor.cp", "actor.dp")
    }
    world_size = int(np.prod(list(layout.values()))) if layout else 1
    ranks = run_ranks(world_size, train_on_stored_batch, overrides)
    scored = {tokens: scores for rank in ranks for tokens, scores in rank[0].items()}
    metrics = [rank[1] for rank in ranks if rank[1] is not None]
    assert len(metrics) == 1, "one rank speaks"
    return scored, metrics[0], {name: tensor for rank in ranks for name, tensor in rank[2].items()}


LAYOUTS = [
    ["actor.tp=2"],
    ["actor.pp=2"],
    ["actor.dp=2"],
    ["actor.tp=2", "actor.pp=2"],
    ["actor.tp=2", "actor.pp=2", "actor.sequence_parallel=true"],
    ["actor.tp=2", "actor.dp=2", "actor.tokens_per_microbatch=300"],
    ["actor.tokens_per_microbatch=150"],
    ["actor.recompute=full"],
    ["actor.pp=2", "actor.vpp=2", "actor.tokens_per_microbatch=400"],
    ["actor.pp=2", "actor.tp=2", "actor.vpp=2", "actor.recompute=selective"],
    ["actor.pp=2", "actor.num_layers_in_last_pipeline_stage=1"],
    ["actor.cp=2"],
    ["actor.cp=2", "actor.tp=2", "actor.sequence_parallel=true"],
    ["actor.cp=2", "actor.pp=2", "actor.tokens_per_microbatch=300"],
    ["actor.cp=2", "actor.dp=2", "actor.recompute=full"],
]


@pytest.mark.parametrize("overrides", LAYOUTS, ids=" ".join)
def test_layout_changes_nothing(overrides):
    scored, metrics, weights = outcome(*overrides)
    oracle_scored, oracle, oracle_weights = outcome()
    assert scored.keys() == oracle_scored.keys()
    assert max(np.abs(scored[key] - oracle_scored[key]).max() for key in scored) < 1e-5
    for name, expected in oracle.items():
        assert metrics[name] == pytest.approx(expected, rel=1e-5, abs=1e-7), name
    assert weights.keys() == oracle_weights.keys()
    assert max(np.abs(weights[name] - oracle_weights[name]).max() for name in weights) < 1e-6


@pytest.mark.parametrize(
    ("algorithm", "tolerance"),
    # A sequence's ratio is the exp of a sum over its tokens, and so are its rounding errors.
    [("algorithm.ratio_type=sequence", 1e-4), ("algorithm.reduction=constant", 1e-5)],
)
def test_other_algorithms_too(algorithm, tolerance):
    _, metrics, _ = outcome(algorithm, "actor.tp=2", "actor.pp=2", "actor.tokens_per_microbatch=200")
    _, oracle, _ = outcome(algorithm)
    for name, expected in oracle.items():
        assert metrics[name] == pytest.approx(expected, rel=tolerance, abs=1e-7), name


def train_on_odd_answers(rank, master, overrides):
    """Updates of two answers, the second of one token, and of a single answer: some ranks have none."""
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    config = load_config("launch/recipes/quickstart.toml", ["actor.tp=1", *OPTIMIZER, *overrides])
    worker = Worker(config, rank=rank, master=master)
    first, second, *_ = (_moved(s) for s in stored_sequences()[0])
    one_token = replace(
        second,
        token_ids_T=second.token_ids_T[: second.num_prompt_tokens + 1],
        old_logprobs_A=second.old_logprobs_A[:1],
        engine_logprobs_A=second.engine_logprobs_A[:1],
    )
    reports = []
    for sequences in ([first, one_token], [one_token]):
        batch = pack([sequences], num_updates=1, dp=config.actor.dp, tokens_per_microbatch=40)
        reports.append(worker.train_step([batch.updates[0][data_parallel_rank(config.actor, rank)]]))
    worker.shutdown()
    return reports


@pytest.mark.parametrize("overrides", [["actor.cp=2", "actor.dp=2"], ["actor.pp=2", "actor.vpp=2"]], ids=" ".join)
def test_one_token_answers_and_ranks_without_any(overrides):
    (oracle,) = run_ranks(1, train_on_odd_answers, [])
    world_size = 4 if "actor.dp=2" in overrides else 2
    (reports,) = [r for r in run_ranks(world_size, train_on_odd_answers, overrides) if r[0] is not None]
    for mine, expected in zip(reports, oracle, strict=True):
        for name, value in expected.items():
            assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_bf16_layouts_agree_to_bf16():
    _, oracle, _ = outcome()
    for overrides in (["actor.precision=bf16"], ["actor.precision=bf16", "actor.tp=2"]):
        _, metrics, _ = outcome(*overrides)
        assert metrics["nft/loss"] == pytest.approx(oracle["nft/loss"], abs=5e-3)
        assert metrics["actor/grad_norm"] == pytest.approx(oracle["actor/grad_norm"], rel=0.05)


def test_log_probs_equal_those_of_transformers():
    from transformers import AutoModelForCausalLM

    scored, _, _ = outcome()
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "model", dtype=torch.float32)
    for sequence in [s for update in stored_sequences() for s in update]:
        tokens = torch.from_numpy(sequence.token_ids_T).long()
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens[None]).logits[0], -1)
        labels = tokens[sequence.num_prompt_tokens :]
        expected = logprobs[sequence.num_prompt_tokens - 1 : -1].gather(1, labels[:, None])[:, 0]
        assert np.abs(scored[sequence.token_ids_T.tobytes()] - expected.numpy()).max() < 1e-5


def test_old_log_probs_of_the_stored_run_are_reproduced():
    """What the quickstart's actor (tp=2) stored is what any layout computes today."""
    scored, _, _ = outcome()
    stored = [s for update in stored_sequences() for s in update]
    assert max(np.abs(scored[s.token_ids_T.tobytes()] - s.old_logprobs_A).max() for s in stored) < 1e-5
