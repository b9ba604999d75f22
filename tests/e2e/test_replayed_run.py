"""A whole run of a mixture that replays its engine's experts: sampling ahead, stopped, gone on, and looked at again."""

import numpy as np
import pytest

from launch.quickstart.upcycle import DENSE, upcycle
from megatron_nft.observe.batches import load_batch
from tests.e2e.driver import SMALL, start, steps

pytestmark = pytest.mark.e2e

SETTINGS = [
    *SMALL, "actor.tp=1", "actor.dp=2", "actor.ep=2", "actor.routing_replay=engine", "train.evaluate_every=0",
    "evaluate.max_prompts=8", "rollout.max_staleness=2", "checkpoint.every=2", "checkpoint.keep_last=3",
    "train.steps=4", "observe.save_batches=true", "rollout.kv_cache_gib=0.25",
]  # fmt: skip


def train(base, folder, *overrides):
    process, _ = start(folder, *SETTINGS, f"model.path={base}", *overrides, module="megatron_nft.train_async")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return out


def check(run, first):
    """The steps from the first on."""
    assert [record["step"] for record in steps(run)] == list(range(first, 5))
    for record in steps(run):
        assert record["actor/experts_missing"] == 0 and record["actor/experts_differ"] < 0.05
        assert record["rollout/unreplayed_gap_mean"] > 0
        path = run / "batches" / f"step_{record['step']}.npz"
        for sequence in (s for update in load_batch(path) for s in update):
            assert sequence.experts_R.shape[0] == sequence.num_tokens - 1 and sequence.experts_R.max() < 8


@pytest.mark.night("the whole program with a mixture, ahead of its engine, on two ranks that share experts")
def test_experts_go_all_the_way(tmp_path):
    base = tmp_path / "base"
    upcycle(DENSE, base)
    train(base, tmp_path, "run.name=first")
    checkpoint = tmp_path / "first" / "checkpoints" / "step_2"
    with np.load(checkpoint / "groups.npz") as file:
        assert len(file["experts"]) == file["experts_rows"].sum() and (file["experts_known"] >= 0).all()
    check(tmp_path / "first", 1)
    out = train(base, tmp_path, "run.name=second", f"checkpoint.resume={checkpoint}")
    assert "resumed from" in out
    check(tmp_path / "second", 3)
