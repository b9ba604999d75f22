"""A running engine that was given the trainer's weights answers as a fresh one started on the same HF folder, exactly.

Token by token and log-prob by log-prob, for trainer layouts, engine tensor-parallel sizes, number formats and families,
several rounds in a row with fresh weights; and the trainer's log-probs of its answers are the engine's. (That the
engine's loader receives the folder's bits: tests/parallel/test_weights.py. vLLM's CPU build packs linear weights and
empties the originals, so they can't be read back.)
"""

from dataclasses import replace

import pytest

from megatron_nft.config import AlgorithmConfig
from megatron_nft.data.packing import pack
from megatron_nft.nft.groups import to_sequences
from megatron_nft.observe.gap import logprob_gap
from megatron_nft.rollout.api import Sampling
from megatron_nft.types import Verdict
from megatron_nft.weights.sync import sync_weights
from tests.conftest import TAKES_MINUTES
from tests.parallel.families import make_folder
from tests.parallel.trainer import LocalEngines, trainer

pytestmark = pytest.mark.e2e

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
GAP = {"float32": 1e-4, "bfloat16": 0.1}
"""Nats; random weights have log-probs of -10 and less, of which bf16 keeps a digit less than of a trained model's."""
MAX_TOKENS = 24
# Every pair of family, number format and engine tp is there; each layout and carrier, too. Every value of them, on a
# push.
ON_A_PUSH = [
    ("qwen2 tied", "float32", 1, "tp=2", "shared_memory"),
    ("qwen2", "bfloat16", 1, "tp=2 pp=2", "collective"),
    ("qwen3", "bfloat16", 2, "tp=2", "collective"),
    ("llama 3", "bfloat16", 1, "pp=2 vpp=2", "collective"),
    ("qwen3_moe", "float32", 1, "dp=2 ep=2", "shared_memory"),
]
AT_NIGHT = [
    ("qwen2 tied", "bfloat16", 2, "pp=2 vpp=2", "shared_memory"),
    ("qwen2", "float32", 2, "tp=1", "shared_memory"),
    ("qwen3", "float32", 1, "pp=2", "shared_memory"),
    ("llama 3", "float32", 2, "tp=2 pp=2", "shared_memory"),
    # vLLM has no code of its own for this one: it runs transformers'.
    ("seed_oss", "float32", 1, "tp=2", "shared_memory"),
    ("qwen2_moe", "bfloat16", 2, "tp=2 sequence_parallel=true ep=2", "collective"),
    ("mixtral", "bfloat16", 1, "tp=2 sequence_parallel=true", "shared_memory"),
    ("qwen3_moe mixed", "float32", 1, "pp=2 dp=2 ep=2", "collective"),
]


class Running(LocalEngines):
    """One engine, as weights/sync.py sees all."""

    def __init__(self, engine):
        self.engine = engine

    def start_update(self, names):
        self.engine.call("start_update", names)

    def update(self, manifests):
        self.engine.call("update", [manifest.to_dict() for manifest in manifests])

    def finish_update(self, policy_version):
        self.engine.call("finish_update", policy_version)


def answers_of_a_fresh_engine(engine_server, folder, dtype, tp):
    engine = engine_server.begin_engine(folder, dtype, tp)
    engine.wait()
    answers = engine.call("answers")
    engine.call("stop")
    engine.close()
    return answers


def gap_of(actor, groups):
    """Mean |engine - actor| of the log-probs of sampled answers."""
    with_verdicts = [
        replace(g, verdicts=tuple(Verdict(kind="right" if i % 2 else "wrong") for i in range(len(g.rollouts))))
        for g in groups
    ]
    sequences = [to_sequences(g, AlgorithmConfig(), max_answer_tokens=MAX_TOKENS) for g in with_verdicts]
    batch = pack(sequences, num_updates=1, dp=1, tokens_per_microbatch=4096)
    scores, *_ = [a for a in actor.call("score", [m for (share,) in batch.updates for m in share]) if a is not None]
    scores = iter(scores)
    return logprob_gap(batch.map_sequences(lambda s, _: replace(s, old_logprobs_A=next(scores))))


def reshard(engine_server, case, rounds, tmp_path):
    """As many rounds of new weights; a fresh engine at the last, one of two workers at night: that takes 20 s."""
    family, dtype, tp, layout, carrier = case
    folders = [make_folder(family, dtype, seed, tmp_path / str(seed)) for seed in range(rounds + 1)]
    engine = engine_server.begin_engine(folders[0], dtype, tp)
    recipe = [
        f"model.path={folders[0]}", "actor.tp=1", *(f"actor.{axis}" for axis in layout.split()),
        f"actor.precision={PRECISIONS[dtype]}", f"rollout.dtype={dtype}", f"rollout.tp={tp}", "weights.bucket_mib=1",
        f"weights.carrier={carrier}",
    ]  # fmt: skip
    with trainer(tmp_path, recipe) as actor:
        engine.wait()
        before = engine.call("answers")
        for version, folder in enumerate(folders[1:], start=1):
            actor.call("read", str(folder))
            sync_weights(actor, Running(engine), version)
            after = engine.call("answers")
            assert [tokens for tokens, _ in after] != [tokens for tokens, _ in before]
            before = after
        sampling = Sampling(group_size=4, temperature=1.0, max_answer_tokens=MAX_TOKENS, seed=1)
        groups = engine.call("sample", sampling)
        gap = gap_of(actor, groups)["rollout/logprob_gap_mean"]
    engine.call("stop")
    engine.close()
    if tp == 1 or rounds > 2:
        assert after == answers_of_a_fresh_engine(engine_server, folders[-1], dtype, tp)
    assert {r.policy_version for group in groups for r in group.rollouts} == {rounds}
    assert gap < GAP[dtype], gap


@pytest.mark.parametrize(("family", "dtype", "tp", "layout", "carrier"), ON_A_PUSH)
def test_engine_equals_a_fresh_one_after_two_rounds(engine_server, family, dtype, tp, layout, carrier, tmp_path):
    reshard(engine_server, (family, dtype, tp, layout, carrier), 2, tmp_path)


@TAKES_MINUTES
@pytest.mark.parametrize(("family", "dtype", "tp", "layout", "carrier"), ON_A_PUSH + AT_NIGHT)
def test_engine_equals_a_fresh_one_after_five_rounds(engine_server, family, dtype, tp, layout, carrier, tmp_path):
    reshard(engine_server, (family, dtype, tp, layout, carrier), 5, tmp_path)
