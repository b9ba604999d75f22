"""Actor and engine through Ray: after every weight sync the running engine is what a fresh one would be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.ranks import Actors
from megatron_nft.cluster.stream import sample_groups
from megatron_nft.config import AlgorithmConfig, RolloutConfig, load_config
from megatron_nft.data.packing import pack
from megatron_nft.data.prompts import load_prompts, load_tokenizer
from megatron_nft.nft.groups import to_sequences
from megatron_nft.observe.batches import load_batch, logprob_gap
from megatron_nft.rollout.api import Sampling
from megatron_nft.types import Verdict
from megatron_nft.weights.sync import sync_weights

pytestmark = pytest.mark.e2e
ASSETS = Path("tests/assets/quickstart")
ROUNDS = 3
ROLLOUT = RolloutConfig()


def with_verdicts(groups):
    """Alternating verdicts, so that any group makes a training sequence."""
    return [
        replace(g, verdicts=tuple(Verdict(kind="right" if i % 2 else "wrong") for i in range(len(g.rollouts))))
        for g in groups
    ]


def long_prompts(prompts, count):
    """Prompts of 200 and more tokens: longer than vLLM's cache blocks, so that a stale cache would show."""
    made = []
    for prompt in prompts[:count]:
        tokens = np.tile(prompt.token_ids_P, 200 // len(prompt.token_ids_P) + 1)
        made.append(replace(prompt, token_ids_P=tokens))
    return made


def answers(engines, prompts):
    """Greedy answers with their log-probs, twice: the second time from the prefix cache."""
    sampling = Sampling(group_size=1, temperature=0.0, max_answer_tokens=64, seed=0)
    both = []
    for _ in range(2):
        groups = sample_groups(engines, prompts, sampling, ROLLOUT)
        both.append([(g.rollouts[0].token_ids_A.tolist(), g.rollouts[0].engine_logprobs_A.tolist()) for g in groups])
    assert both[0] == both[1]
    return both[0]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_engine_equals_a_fresh_one_after_every_sync(precision, dtype, tmp_path):
    config = load_config(
        "launch/recipes/quickstart.toml",
        ["actor.tp=2", f"actor.precision={precision}", f"rollout.dtype={dtype}", "optimizer.learning_rate=1e-3",
         "data.max_prompt_tokens=400", "optimizer.warmup_updates=0", "weights.bucket_mib=1"],
    )  # fmt: skip
    prompts = load_prompts(config.data.held_out, load_tokenizer(config.model.path), config.data).prompts[:24]
    prompts = [*prompts[:16], *long_prompts(prompts[16:], 8)]
    batch = pack(load_batch(ASSETS / "batch.npz"), num_updates=2, dp=1, tokens_per_microbatch=4096)
    with ray_cluster(
        config.model_copy(update={"rollout": config.rollout.model_copy(update={"engines": 2})})
    ) as placement:
        actors, engines = Actors(config, placement), Fleet(config, placement)
        for start in (actors.begin_build(), engines.begin_build()):
            start.wait()
        before = answers(engines, prompts)
        for version in range(1, ROUNDS + 1):
            actors.train_step(batch)
            metrics = sync_weights(actors, engines, policy_version=version)
            assert metrics["weights/buckets"] > 1
            exported = tmp_path / f"hf{version}"
            actors.save_hf(exported)
            after = answers(engines, prompts)
            assert [a[0] for a in after] != [b[0] for b in before], "training changed some answers"
            before = after

            fresh_config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(exported)})})
            fresh = _Shifted(fresh_config, placement)
            fresh.begin_build().wait()
            assert answers(fresh, prompts) == after
            fresh.stop()

            sampling = Sampling(group_size=4, temperature=1.0, max_answer_tokens=64, seed=version)
            groups = sample_groups(engines, prompts, sampling, config.rollout)
            assert {r.policy_version for g in groups for r in g.rollouts} == {version}
            scored = actors.score(
                pack(
                    [to_sequences(g, AlgorithmConfig(), max_answer_tokens=64) for g in with_verdicts(groups)],
                    num_updates=1,
                    dp=1,
                    tokens_per_microbatch=4096,
                )
            )
            gap = logprob_gap(scored)
            assert gap["rollout/logprob_gap_mean"] < (1e-4 if precision == "fp32" else 0.05), gap
        index = json.loads((exported / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] > 1_000_000


class _Shifted(Fleet):
    """An engine in the place after the others."""

    def __init__(self, config, placement):
        class Next:
            def engine_options(self, index):
                return placement.engine_options(index + 1)

            def engine_environment(self, index):
                return placement.engine_environment(index + 1)

        super().__init__(config, Next())

    def stop(self):
        import ray

        for engine in self._engines.values():
            ray.kill(engine)
