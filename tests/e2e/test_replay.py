"""The replay command on a stored batch, and a run whose gradient stops being finite."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
RECIPE, BATCH = "launch/recipes/quickstart.toml", "tests/assets/quickstart/batch.npz"


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"megatron_nft.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_a_stored_batch_is_replayed_with_the_recorded_log_probs():
    done = run("replay", RECIPE, BATCH, "actor.tp=1")
    assert done.returncode == 0, done.stderr
    score, first, second = done.stdout.splitlines()
    assert "10469 answer tokens" in score
    assert float(score.split("max ")[1]) < 1e-5
    assert first.startswith("update 1/2 | loss ") and second.startswith("update 2/2")
    assert "| nonfinite_updates 0 |" in first


def test_replay_under_another_method_with_a_reference_model():
    """The reference is the model itself: no divergence before the first update, some after it."""
    method = ["algorithm.name=grpo", "algorithm.kl_weight=0.1", "model.reference=tests/assets/quickstart/model"]
    done = run("replay", RECIPE, BATCH, "actor.tp=1", "actor.dp=2", *method)
    assert done.returncode == 0, done.stderr
    first, second = (dict(v.rsplit(" ", 1) for v in line.split(" | ")[1:]) for line in done.stdout.splitlines()[1:])
    assert float(first["kl"]) < 1e-9 < float(second["kl"])
    assert "clipped_fraction" in first and "clamped_fraction" not in first


def test_wrong_files_are_refused(tmp_path):
    done = run("replay", RECIPE, "README.md")
    assert done.returncode == 2 and "README.md is not a saved batch" in done.stderr
    done = run("replay", tmp_path / "recipe.toml", BATCH)
    assert done.returncode == 2 and "no recipe at" in done.stderr


def test_a_gradient_that_is_not_finite_stops_the_run_and_can_be_replayed(tmp_path):
    """A learning rate of 1e30 breaks the weights in update 1 of step 1: update 2 cannot be computed."""
    run_dir = tmp_path / "broken"
    done = run(
        "train", RECIPE, "actor.tp=1", "optimizer.learning_rate=1e30", "optimizer.warmup_updates=0", "train.steps=2",
        "train.groups_per_step=4", "rollout.group_size=4", "data.held_out=[]", f"run.dir={tmp_path}", "run.name=broken",
    )  # fmt: skip
    assert done.returncode == 1
    assert "step 1: an update's gradient was not finite, and was not applied; look at it with: python -m" in done.stderr
    assert "optimizer.skip_nonfinite=true" in done.stderr
    kept = run_dir / "nonfinite" / "step_1"
    assert (kept / "hf" / "config.json").exists()

    command = done.stderr.split("python -m megatron_nft.")[1].split("   (or leave")[0].split()
    again = run(*command)
    assert again.returncode == 1, again.stderr
    assert "nonfinite_updates 1" in again.stdout
    assert "not finite:" in again.stdout and "of now" in again.stdout

    # From the base model the same batch is sound: the weights were to blame.
    command[-1] = "model.path=tests/assets/quickstart/model"
    sound = run(*command, "optimizer.learning_rate=1e-5")
    assert sound.returncode == 0, sound.stderr
    assert "nonfinite_updates 0" in sound.stdout and "nonfinite_updates 1" not in sound.stdout


def test_skipping_goes_on_and_counts(tmp_path):
    done = run(
        "train", RECIPE, "actor.tp=1", "optimizer.learning_rate=1e30", "optimizer.warmup_updates=0", "train.steps=1",
        "train.groups_per_step=4", "rollout.group_size=4", "data.held_out=[]", "optimizer.skip_nonfinite=true",
        f"run.dir={tmp_path}", "run.name=skipped",
    )  # fmt: skip
    assert "step 1: left a non-finite update out; look at it with: python -m megatron_nft.replay" in done.stdout
    records = [json.loads(line) for line in Path(tmp_path / "skipped" / "metrics.jsonl").read_text().splitlines()]
    assert [r["actor/nonfinite_updates"] for r in records if r["kind"] == "step"] == [1]
    assert (tmp_path / "skipped" / "nonfinite" / "step_1" / "batch.npz").exists()
