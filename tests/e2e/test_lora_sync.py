"""Adapters into a running engine, alone or added to the weights: it answers as a fresh engine does, bit by bit.

Alone: as a fresh one in which vLLM itself has read the exported PEFT folder. Added: as a fresh one on the exported HF
folder. And what it says of its tokens is what the actor says. Several rounds in a row, each with new adapters.
"""

import pytest

from megatron_nft.config import load_config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.lora import peft_config
from megatron_nft.rollout.api import Sampling
from megatron_nft.weights.export import finish_adapter_folder, finish_hf_folder
from megatron_nft.weights.sync import sync_weights
from tests.e2e.test_resharding import MAX_TOKENS, PRECISIONS, Running, gap_of
from tests.parallel.families import make_folder
from tests.parallel.trainer import trainer

pytestmark = pytest.mark.e2e

ON_A_PUSH = [
    # family, number format, engine's tp, layout, sync, targets
    ("qwen2 tied", "float32", 1, "tp=2", "adapter", ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]),
    ("llama 3", "bfloat16", 1, "pp=2", "merged", ["linear_qkv", "linear_fc2"]),
]
AT_NIGHT = [
    ("qwen3", "bfloat16", 2, "tp=2", "adapter", ["linear_proj", "linear_fc1"]),
    ("qwen2", "bfloat16", 1, "tp=2 pp=2", "adapter", ["linear_qkv", "linear_fc2"]),
    ("qwen2", "float32", 2, "tp=2", "merged", ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]),
]
GAP = {"float32": 1e-5, "bfloat16": 0.1}
"""Nats, in the mean, of what engine and actor say."""
LORA = {"rank": 6, "alpha": 9.0, "rslora": True}
"""A rank that vLLM has no room of its own for."""


def exported(actor, config, tmp_path, version):
    """The actor's PEFT folder and HF folder, as cluster/ranks.py makes them."""
    adapter, merged = tmp_path / f"adapter{version}", tmp_path / f"merged{version}"
    for folder, verb in ((adapter, "save_adapter"), (merged, "save_hf")):
        folder.mkdir()
        maps = [m for m in actor.call(verb, str(folder)) if m is not None]
        if verb == "save_hf":
            finish_hf_folder(folder, config.model.hf_folder, maps)
        else:
            about = peft_config(read_hf_config(config.model.path), config.lora.adapters, base=config.model.path)
            finish_adapter_folder(folder, about, maps)
    return adapter, merged


def rounds_of(engine_server, case, rounds, tmp_path):
    family, dtype, tp, layout, sync, targets = case
    base = make_folder(family, dtype, 5, tmp_path / "base")
    settings = LORA | {"targets": targets, "sync": sync}
    recipe = [
        f"model.path={base}", "actor.tp=1", *(f"actor.{axis}" for axis in layout.split()), "weights.bucket_mib=1",
        f"actor.precision={PRECISIONS[dtype]}", f"rollout.dtype={dtype}", f"rollout.tp={tp}",
        *(f"lora.{key}={str(value).lower() if value is True else value}" for key, value in settings.items()),
    ]  # fmt: skip
    config = load_config("launch/recipes/quickstart.toml", recipe)
    is_alone = sync == "adapter"
    engine = engine_server.begin_engine(base, dtype, tp, *([settings] if is_alone else []))
    with trainer(tmp_path, recipe) as actor:
        assert all(("lora_" in name) == is_alone for name in actor.weight_names)
        engine.wait()
        before = None
        for version in range(1, rounds + 1):
            actor.call("draw", version)
            metrics = sync_weights(actor, Running(engine), version)
            after = engine.call("answers")
            adapter, merged = exported(actor, config, tmp_path, version)
            fresh = engine_server.begin_engine(*(
                (base, dtype, tp, settings, str(adapter)) if is_alone else (merged, dtype, tp)
            ))  # fmt: skip
            fresh.wait()
            assert after == fresh.call("answers"), version
            fresh.call("stop")
            fresh.close()
            assert before is None or [tokens for tokens, _ in after] != [tokens for tokens, _ in before]
            before = after
        groups = engine.call("sample", Sampling(group_size=4, temperature=1.0, max_answer_tokens=MAX_TOKENS, seed=1))
        gap = gap_of(actor, groups)["rollout/logprob_gap_mean"]
    engine.call("stop")
    engine.close()
    assert {r.policy_version for group in groups for r in group.rollouts} == {rounds}
    assert gap < GAP[dtype], gap
    return metrics


@pytest.mark.parametrize("case", ON_A_PUSH, ids=lambda case: f"{case[4]} {case[0]}")
def test_engine_equals_a_fresh_one_after_two_rounds(engine_server, case, tmp_path):
    rounds_of(engine_server, case, 2, tmp_path)


@pytest.mark.night("three rounds more, and pairs of layout, number format and engine's tp")
@pytest.mark.parametrize("case", ON_A_PUSH + AT_NIGHT, ids=lambda case: f"{case[4]} {case[0]} tp{case[2]}")
def test_engine_equals_a_fresh_one_after_five_rounds(engine_server, case, tmp_path):
    rounds_of(engine_server, case, 5, tmp_path)
