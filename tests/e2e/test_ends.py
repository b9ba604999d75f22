"""Ends that nobody wished for: an error saves what was trained, says by its status whether a new job mends it, and
waits for nothing that doesn't answer. (Signals, and everything killed: test_resume.py.)"""

import os
import signal
import time

import pytest

from tests.conftest import RUN
from tests.e2e.driver import as_soon_as, has_step, records, steps

pytestmark = pytest.mark.e2e
RARELY = ["checkpoint.every=100", "train.evaluate_every=0"]


def test_an_engine_that_dies_too_often_costs_no_step(straight, shared, tmp_path):
    """Its death ends the run, with status 75: what was trained is saved, and the same command goes on, to the same
    numbers."""
    run, pid = tmp_path / "quickstart", shared.pid("engine 0")
    with as_soon_as(lambda: has_step(run, 2), lambda: os.kill(pid, signal.SIGKILL)):
        ended = shared.train(tmp_path, *RUN, *RARELY, "train.steps=3", "rollout.max_restarts=0")
    assert ended.status == 75, ended.err
    assert "engines have been started again 0 times in a row without getting beyond" in ended.err
    assert ended.err.endswith("; the same command goes on from the last checkpoint\n")
    saved = len(steps(run))
    assert saved >= 2 and f"saving step {saved} ..." in ended.out
    assert os.readlink(run / "checkpoints" / "latest") == f"step_{saved}"
    ended = shared.train(tmp_path, *RUN, *RARELY, "train.steps=3")
    assert ended.status == 0 and f"resumed from {run}/checkpoints/step_{saved}" in ended.out, ended.err
    trained = [record for record in records(straight) if record["kind"] == "step"][:3]
    assert [record for record in records(run) if record["kind"] == "step"] == trained
    done = shared.train(tmp_path, *RUN, *RARELY, "train.steps=3")
    assert done.status == 0 and done.out.startswith(f"{run} is done: 3 of 3 steps, greedy accuracy "), done.out
    assert "train.steps=6" in done.out and "run.overwrite=all" in done.out and "actor: " not in done.out


def test_what_can_not_be_saved_is_not_asked_for_again(shared, tmp_path):
    """With checkpoint.every = 0 a new job would begin at step 0 each time."""
    run = tmp_path / "quickstart"
    with as_soon_as(lambda: has_step(run, 1), lambda: os.kill(os.getpid(), signal.SIGUSR1)):
        ended = shared.train(tmp_path, *RUN, *RARELY, "train.steps=9", "data.held_out=[]", "checkpoint.every=0")
    assert ended.status == 130, ended.err
    assert "is not saved; there is no checkpoint" in ended.out and not (run / "checkpoints").exists()
    assert "interrupted by SIGUSR1; the same command would train again what wasn't saved" in ended.err


@pytest.mark.night("an engine that hangs, and is not dead, while ranks are started again")
def test_a_rank_that_dies_beside_an_evaluation_that_hangs_does_not_wait_for_it(shared, tmp_path):
    """rollout.timeout_s is an hour."""
    run, engine, rank = tmp_path / "quickstart", shared.pid("engine 0"), shared.pid("actor rank 1")
    scored = run / "batches" / "step_1.npz"  # written once step 1 is scored; by then the engines evaluate

    def stop_and_kill():
        os.kill(engine, signal.SIGSTOP)
        os.kill(rank, signal.SIGKILL)

    start = time.monotonic()
    with as_soon_as(scored.exists, stop_and_kill):
        ended = shared.train(
            tmp_path, *RUN, "train.steps=2", "evaluate.in_background=true", "evaluate.max_prompts=96",
            "evaluate.samples=8",
        )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "starting all ranks again, from the last checkpoint ..." in ended.out and len(steps(run)) == 2
    assert time.monotonic() - start < 300
