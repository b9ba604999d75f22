"""Ends that nobody wished for: an error saves what was trained, says by its status whether a new job mends it, and
waits for nothing that doesn't answer. (Signals, and everything killed: test_resume.py.)"""

import os
import signal
import threading
import time
from contextlib import closing

import pytest
import ray

from megatron_nft.cluster.processes import Pending
from megatron_nft.run.stop import Stop, StopRequested
from tests.conftest import RUN, TAKES_MINUTES
from tests.e2e.driver import as_soon_as, assert_no_survivors, has_step, records, start, steps, wait_until

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


class Busy:
    def call(self):
        time.sleep(600)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_each_way_of_waiting_for_ray_at_once(shared, number):
    """Its waiting is in C, where the exception of a signal's handler can turn into another, or be heard much later."""
    busy = ray.remote(num_cpus=0)(Busy).remote()
    answer, within_s = busy.call.remote(), 60
    pending = Pending("call", {"busy": answer}, within_s, {"busy": busy})
    waits = [
        lambda: ray.wait([answer], timeout=within_s),
        lambda: ray.get(answer, timeout=within_s),
        lambda: ray.get([answer], timeout=within_s),
        pending.wait,
    ]
    for wait in waits:
        with closing(Stop()) as stop:
            timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
            timer.start()
            begun = time.monotonic()
            with pytest.raises(StopRequested) as request, stop.interruptible():
                wait()
            assert request.value.number == number and time.monotonic() - begun < within_s / 2
            timer.join()
    ray.kill(busy)


@TAKES_MINUTES
@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 130)])
def test_a_signal_while_ranks_start_is_heeded_in_words(tmp_path, number, status):
    process, mark = start(tmp_path, *RUN, "train.steps=3", "data.held_out=[]")
    wait_until((tmp_path / "quickstart/logs/attempt_1/actor_rank_0.log").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert err.strip().endswith(f"interrupted by {number.name}; the same command goes on from the last checkpoint")
    assert "Traceback" not in err and f"interrupted: {number.name}" in out
    assert_no_survivors(mark)


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
