"""Actor and engines through Ray: after a weight sync they agree about what the engines answer, before it they don't."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_nft.cluster.stream import sample_groups
from megatron_nft.config import AlgorithmConfig
from megatron_nft.data.packing import pack
from megatron_nft.data.prompts import load_prompts, load_tokenizer
from megatron_nft.nft.groups import to_sequences
from megatron_nft.observe.batches import load_batch
from megatron_nft.observe.gap import logprob_gap
from megatron_nft.rollout.api import Sampling
from megatron_nft.types import Verdict
from megatron_nft.weights.sync import sync_weights

pytestmark = pytest.mark.e2e
ASSETS = Path("tests/assets/quickstart")


def long_prompts(prompts):
    """Prompts of 200 and more tokens: longer than vLLM's cache blocks, so that a stale cache would show."""
    made = []
    for prompt in prompts:
        tokens = np.tile(prompt.token_ids_P, 200 // len(prompt.token_ids_P) + 1)
        made.append(replace(prompt, token_ids_P=tokens))
    return made


def gap(actors, engines, prompts, config, version):
    """Mean |engine - actor| of the log-probs of sampled answers, all of which are this policy's."""
    sampling = Sampling(group_size=4, temperature=1.0, max_answer_tokens=64, seed=version)
    groups = sample_groups(engines, prompts, sampling, config.rollout)
    assert {r.policy_version for g in groups for r in g.rollouts} == {version}
    with_verdicts = [  # alternating ones, so that any group makes a training sequence
        replace(g, verdicts=tuple(Verdict(kind="right" if i % 2 else "wrong") for i in range(len(g.rollouts))))
        for g in groups
    ]
    sequences = [to_sequences(g, AlgorithmConfig(), max_answer_tokens=64) for g in with_verdicts]
    scored = actors.score(pack(sequences, num_updates=1, dp=1, tokens_per_microbatch=4096))
    return logprob_gap(scored)["rollout/logprob_gap_mean"]


def greedy(engines, prompts, config):
    """Answers with their log-probs, twice: the second time from the prefix cache."""
    sampling = Sampling(group_size=1, temperature=0.0, max_answer_tokens=64, seed=0)
    both = []
    for _ in range(2):
        groups = sample_groups(engines, prompts, sampling, config.rollout)
        both.append([(g.rollouts[0].token_ids_A.tolist(), g.rollouts[0].engine_logprobs_A.tolist()) for g in groups])
    assert both[0] == both[1]
    return [tokens for tokens, _ in both[0]]


def test_an_engine_with_a_new_version_has_the_new_weights(shared):
    from tests.e2e.shared import base

    config = base("optimizer.learning_rate=1e-3", "optimizer.warmup_updates=0", "weights.bucket_mib=1")
    prompts = load_prompts(config.data.held_out, load_tokenizer(config.model.path), config.data).prompts[:24]
    prompts = [*prompts[:16], *long_prompts(prompts[16:])]
    batch = pack(load_batch(ASSETS / "batch.npz"), num_updates=2, dp=1, tokens_per_microbatch=4096)
    actors, engines = shared.serve(config)
    sync_weights(actors, engines, policy_version=0)
    before = greedy(engines, prompts, config)
    for version in (1, 2):
        actors.train_step(batch)
        assert gap(actors, engines, prompts, config, version - 1) > 1e-2, "the engines have what the actor had"
        assert sync_weights(actors, engines, policy_version=version)["weights/buckets"] > 1
        assert gap(actors, engines, prompts, config, version) < 1e-5
        after = greedy(engines, prompts, config)
        assert after != before, "training changed some answers"
        before = after
