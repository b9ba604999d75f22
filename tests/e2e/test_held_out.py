"""Evaluation in the background of a run: no run is lost for it. (That it gives the same answers: test_resume.py.)"""

import os
import signal
import time

import pytest

from tests.conftest import RUN, TAKES_MINUTES
from tests.e2e.driver import as_soon_as, assert_no_survivors, last_pid, order, start, wait_until

pytestmark = pytest.mark.e2e
LONG = ["evaluate.in_background=true", "evaluate.max_prompts=256", "evaluate.samples=8"]
"""An evaluation that is still under way when step 1 has been scored."""


def is_scored(run):
    """Step 1's batch is written once it is scored; by then the engines evaluate."""
    return (run / "batches" / "step_1.npz").exists()


def wait_until_scored(process, run):
    wait_until(lambda: is_scored(run), process, 280)
    assert order(run) == []


def test_an_engine_that_dies_meanwhile_costs_the_evaluation_only(shared, tmp_path):
    run, pid = tmp_path / "quickstart", shared.pid("engine 0")
    with as_soon_as(lambda: is_scored(run), lambda: os.kill(pid, signal.SIGKILL)):
        ended = shared.train(tmp_path, *RUN, "train.steps=2", *LONG, "evaluate.max_prompts=96")
    assert ended.status == 0, ended.err
    assert "evaluation at step 0 is left out: all engines had to be started again" in ended.out
    assert order(run) == [("step", 1), ("step", 2), ("evaluation", 2)]


@TAKES_MINUTES
def test_a_rank_that_dies_meanwhile_costs_no_evaluation(tmp_path):
    """The run goes back to step 0, whose evaluation comes to its end first, and is not done again."""
    process, mark = start(tmp_path, *RUN, "train.steps=2", *LONG)
    run = tmp_path / "quickstart"
    wait_until_scored(process, run)
    os.kill(last_pid(run, "actor_rank_1"), signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "starting all ranks again, from the last checkpoint ..." in out and out.count("evaluation at step 0 |") == 1
    assert order(run) == [("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2)]
    assert_no_survivors(mark)


@TAKES_MINUTES
def test_a_stop_does_not_wait_for_it(tmp_path):
    process, mark = start(tmp_path, *RUN, "train.steps=6", *LONG)
    run = tmp_path / "quickstart"
    wait_until_scored(process, run)
    asked = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75 and "Traceback" not in err, err
    assert "saving step 1 ..." in out and time.monotonic() - asked < 30
    assert os.readlink(run / "checkpoints" / "latest") == "step_1"
    assert_no_survivors(mark)
