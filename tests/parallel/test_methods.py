"""A new method is one file and its line in the table: from judged groups to the gradient, against autograd by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_nft.config import AlgorithmConfig, load_config
from megatron_nft.config.methods import METHODS, MethodRow
from megatron_nft.data.packing import pack
from megatron_nft.nft.groups import to_sequences
from megatron_nft.types import MicroBatch, Prompt, Rollout, RolloutGroup, Verdict
from tests.parallel.oracle import VOCAB_SIZE, answer_logprobs, load_model, make_model
from tests.parallel.ranks import run_ranks
from tests.parallel.reinforce import BONUS

pytestmark = pytest.mark.parallel
OVERRIDES = [
    *("algorithm.name=reinforce", "actor.tokens_per_microbatch=60", "actor.tp=1"),
    *("data.max_prompt_tokens=64", "rollout.max_answer_tokens=64"),
]
GRADED = [[1.0, 0.25, None, 0.5], [0.0, 0.75]]
"""Scores of each group's answers; None: the grader says "right" and no more."""


def add_the_line():
    """To this process's table: a rank's."""
    METHODS["reinforce"] = MethodRow(
        module="tests.parallel.reinforce", preset={"reduction": "tokens"}, takes_scores=True
    )


def judged_groups():
    numbers = np.random.default_rng(0)
    groups = []
    for number, scores in enumerate(GRADED):
        prompt_P = numbers.integers(0, VOCAB_SIZE, 5 + number).astype(np.int32)
        prompt = Prompt(prompt_id=f"p/{number}", text="", token_ids_P=prompt_P, ground_truth="", data_source="toy")
        lengths = numbers.integers(2, 25, len(scores)).tolist()
        rollouts = tuple(
            Rollout(
                text="",
                token_ids_A=numbers.integers(0, VOCAB_SIZE, length).astype(np.int32),
                engine_logprobs_A=np.zeros(length, np.float32),
                truncated=False,
                policy_version=0,
                columns={"surprise": numbers.random(length, np.float32)},
            )
            for length in lengths
        )
        verdicts = tuple(Verdict(kind="right", score=score) for score in scores)
        groups.append(RolloutGroup(prompt=prompt, rollouts=rollouts, verdicts=verdicts))
    return groups


def train_on_them(rank, master, folder, overrides):
    """The gradient of one update as HF tensors, and its metrics; a rank may have nothing but an empty microbatch."""
    torch.set_num_threads(1)
    add_the_line()
    from megatron_nft.actor.topology import data_parallel_rank
    from megatron_nft.actor.worker import Worker
    from tests.parallel.test_parity import gradients_before_each_step

    config = load_config("launch/recipes/quickstart.toml", [f"model.path={folder}", *overrides])
    worker = Worker(config, rank=rank, master=master)
    groups = [to_sequences(group, config.algorithm, max_answer_tokens=64) for group in judged_groups()]
    batch = pack(groups, num_updates=1, dp=config.actor.dp, tokens_per_microbatch=config.actor.tokens_per_microbatch)
    # As a driver does with what score says, here of nothing: the loss takes no old log-probs.
    batch = batch.map_sequences(lambda s, _: replace(s, old_logprobs_A=np.zeros(s.num_answer_tokens, np.float32)))
    microbatches = batch.updates[0][data_parallel_rank(config.actor, rank)]
    gradients = gradients_before_each_step(worker)
    metrics = worker.train_step([[*microbatches, microbatches[0].emptied]])
    worker.shutdown()
    return gradients[0], metrics


def by_hand(folder):
    """Gradients and the loss, of transformers' model in float64, each answer by itself."""
    model = load_model(folder)
    groups = judged_groups()
    tokens = sum(len(r.token_ids_A) for group in groups for r in group.rollouts)
    loss, weights = torch.zeros((), dtype=torch.float64), 0.0
    for group, scores in zip(groups, GRADED, strict=True):
        rewards = [1.0 if score is None else score for score in scores]
        (*sequences,) = to_sequences(group, AlgorithmConfig(name="grpo"), max_answer_tokens=64)
        for sequence, rollout, reward in zip(sequences, group.rollouts, rewards, strict=True):
            weight_A = reward - np.mean(rewards) + BONUS * rollout.columns["surprise"].astype(np.float64)
            loss = loss - (torch.from_numpy(weight_A) * answer_logprobs(model, sequence)).sum() / tokens
            weights += weight_A.sum() / tokens
    loss.backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters()}, loss.item(), weights


@pytest.mark.parametrize("layout", [[], ["actor.dp=2"], ["actor.cp=2"]], ids=["one rank", "dp=2", "cp=2"])
def test_a_further_method_trains(tmp_path, layout):
    folder = str(make_model(tmp_path, tied=True))
    ranks = run_ranks(2 if layout else 1, train_on_them, folder, [*OVERRIDES, *layout])
    expected, loss, weight = by_hand(folder)
    (metrics,) = [rank[1] for rank in ranks if rank[1] is not None]
    assert metrics["nft/loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)  # positive and negative terms cancel
    assert metrics["nft/weight_mean"] == pytest.approx(weight, rel=1e-5)
    assert "nft/clamped_fraction" not in metrics and "nft/clipped_fraction" not in metrics
    for gradient, _ in ranks:
        assert gradient.keys() == expected.keys()
        for name, grad in gradient.items():
            assert np.isfinite(grad).all()
            assert np.linalg.norm(grad - expected[name]) <= 1e-5 * np.linalg.norm(expected[name]), name


def test_a_column_that_the_answers_have_not_is_named(tmp_path):
    with pytest.raises(AssertionError, match="the loss takes baseline, surprise, and the answers have only engine_log"):
        run_ranks(1, train_on_nothing, str(make_model(tmp_path, tied=True)))


def train_on_nothing(rank, master, folder):
    add_the_line()
    from megatron_nft.actor.worker import Worker

    config = load_config("launch/recipes/quickstart.toml", [f"model.path={folder}", *OVERRIDES])
    worker = Worker(config, rank=rank, master=master)
    worker.train_step([[MicroBatch(sequences=())]])
