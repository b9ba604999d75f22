"""A whole run of a mixture that replays its engine's experts: sampling ahead, stopped, gone on, and looked at again;
and in turns with its engine, killed."""

import os
import signal

import numpy as np
import pytest

from launch.quickstart.upcycle import DENSE, upcycle
from megatron_nft.observe.batches import load_batch
from tests.e2e.driver import SMALL, kill, last_pid, records, same_bits, start, steps, wait_for

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


@pytest.mark.night("a mixture's run of which an engine, and then everything is killed, with its experts on two ranks")
def test_a_killed_run_is_as_if_it_had_never_stopped(tmp_path):
    base = tmp_path / "base"
    upcycle(DENSE, base)
    settings = [*SETTINGS, f"model.path={base}", "rollout.max_staleness=0"]
    straight, run = tmp_path / "a" / "quickstart", tmp_path / "b" / "quickstart"
    process, _ = start(tmp_path / "a", *settings)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    process, mark = start(tmp_path / "b", *settings)
    wait_for(process, "step 1/")
    os.kill(last_pid(run, "engine_0"), signal.SIGKILL)
    wait_for(process, "step 3/")
    kill(process, mark)
    process, _ = start(tmp_path / "b", *settings)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    assert f"resumed from {run}/checkpoints/step_2" in out
    assert records(run) == records(straight)
    same_bits(straight / "checkpoints" / "step_4", run / "checkpoints" / "step_4")
