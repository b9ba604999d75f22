"""A whole run of a mixture that replays its engine's experts: sampling ahead, stopped, gone on, and looked at again."""

from pathlib import Path

import numpy as np
import pytest

from launch.quickstart.upcycle import DENSE, upcycle
from megatron_nft.observe.batches import load_batch
from tests.e2e.driver import SMALL, start, steps

pytestmark = pytest.mark.e2e

SETTINGS = [
    *SMALL, "run.name=mixture", "actor.tp=1", "actor.dp=2", "actor.ep=2", "actor.routing_replay=engine",
    "train.evaluate_every=0", "evaluate.max_prompts=8", "rollout.max_staleness=2", "checkpoint.every=2",
    "observe.save_batches=true", "rollout.kv_cache_gib=0.25",
]  # fmt: skip


def train_to(step, base, folder):
    overrides = [*SETTINGS, f"model.path={base}", f"train.steps={step}"]
    process, _ = start(folder, *overrides, module="megatron_nft.train_async")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return out


@pytest.mark.night("the whole program with a mixture, ahead of its engine, on two ranks that share experts")
def test_experts_go_all_the_way(tmp_path):
    base = tmp_path / "base"
    upcycle(DENSE, base)
    train_to(2, base, tmp_path)
    run = tmp_path / "mixture"
    with np.load(run / "checkpoints" / "step_2" / "groups.npz") as file:
        assert len(file["experts"]) == file["experts_rows"].sum() and (file["experts_known"] >= 0).all()
    out = train_to(5, base, tmp_path)
    assert "resumed from" in out
    for record in steps(run):
        assert record["actor/experts_missing"] == 0 and record["actor/experts_differ"] < 1e-3
        assert record["rollout/logprob_gap_mean"] < 1e-5 or record["async/staleness_mean"] > 0
        assert record["rollout/unreplayed_gap_mean"] > 0
    for step in range(1, 6):
        for sequence in (s for update in load_batch(run / "batches" / f"step_{step}.npz") for s in update):
            assert sequence.experts_R.shape[0] == sequence.num_tokens - 1 and sequence.experts_R.max() == 7
    assert Path(run / "hf" / "config.json").exists()
