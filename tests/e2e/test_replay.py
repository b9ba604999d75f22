"""The replay command on a stored batch, and a run whose gradient stops being finite."""

import pytest

from megatron_nft import replay
from tests.conftest import RUN
from tests.e2e.driver import RECIPE, call, steps

pytestmark = pytest.mark.e2e
BATCH = "tests/assets/quickstart/batch.npz"
BROKEN = [*RUN, "actor.tp=1", "optimizer.learning_rate=1e30", "optimizer.warmup_updates=0", "rollout.group_size=4",
          "data.held_out=[]"]  # fmt: skip
"""A learning rate of 1e30 breaks the weights in update 1 of step 1: update 2 cannot be computed."""


def test_a_stored_batch_is_replayed_with_the_recorded_log_probs(shared):
    done = shared.replay(RECIPE, BATCH, "actor.tp=1")
    assert done.status == 0, done.err
    score, first, second = done.out.splitlines()
    assert "10469 answer tokens" in score
    assert float(score.split("mean ")[1].split(",")[0]) < 1e-6 and float(score.split("max ")[1]) < 3e-5
    assert first.startswith("update 1/2 | loss ") and second.startswith("update 2/2")
    assert "| nonfinite_updates 0 |" in first


def test_replay_under_another_method_with_a_reference_model(shared):
    """The reference is the model itself: no divergence before the first update, some after it."""
    method = ["algorithm.name=grpo", "algorithm.kl_weight=0.1", "model.reference=tests/assets/quickstart/model"]
    done = shared.replay(RECIPE, BATCH, "actor.tp=1", "actor.dp=2", *method)
    assert done.status == 0, done.err
    first, second = (dict(v.rsplit(" ", 1) for v in line.split(" | ")[1:]) for line in done.out.splitlines()[1:])
    assert float(first["kl"]) < 1e-9 < float(second["kl"])
    assert "clipped_fraction" in first and "clamped_fraction" not in first


def test_wrong_files_are_refused(tmp_path):
    done = call(replay.main, RECIPE, "README.md")
    assert done.status == 2 and "README.md is not a saved batch" in done.err
    done = call(replay.main, tmp_path / "recipe.toml", BATCH)
    assert done.status == 2 and "no recipe at" in done.err


def test_a_gradient_that_is_not_finite_stops_the_run_and_can_be_replayed(shared, tmp_path):
    done = shared.train(tmp_path, *BROKEN, "train.steps=2")
    assert done.status == 1
    assert "step 1: an update's gradient was not finite, and was not applied; look at it with: python -m" in done.err
    assert "optimizer.skip_nonfinite=true" in done.err
    kept = tmp_path / "quickstart" / "nonfinite" / "step_1"
    assert (kept / "hf" / "config.json").exists()

    module, *arguments = done.err.split("python -m megatron_nft.")[1].split("   (or leave")[0].split()
    assert module == "replay"
    again = shared.replay(*arguments)
    assert again.status == 1, again.err
    assert "nonfinite_updates 1" in again.out
    assert "not finite:" in again.out and "of now" in again.out

    # From the base model the same batch is sound: the weights were to blame.
    arguments[-1] = "model.path=tests/assets/quickstart/model"
    sound = shared.replay(*arguments, "optimizer.learning_rate=1e-5")
    assert sound.status == 0, sound.err
    assert "nonfinite_updates 0" in sound.out and "nonfinite_updates 1" not in sound.out


def test_skipping_goes_on_and_counts(shared, tmp_path):
    done = shared.train(tmp_path, *BROKEN, "train.steps=1", "optimizer.skip_nonfinite=true")
    assert "step 1: left a non-finite update out; look at it with: python -m megatron_nft.replay" in done.out
    run = tmp_path / "quickstart"
    assert [r["actor/nonfinite_updates"] for r in steps(run)] == [1]
    assert (run / "nonfinite" / "step_1" / "batch.npz").exists()
