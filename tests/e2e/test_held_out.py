"""Evaluation in the background of a run: the same answers as between the steps, and no run is lost for it."""

import json
import os
import signal
import time

import pytest

from tests.conftest import RUN, TAKES_MINUTES
from tests.e2e.test_resume import records, same_bits
from tests.e2e.test_survival import last_pid
from tests.e2e.test_train import assert_no_survivors, start

pytestmark = pytest.mark.e2e
BEHIND = "evaluate.in_background=true"
LONG = [BEHIND, "evaluate.max_prompts=256", "evaluate.samples=8"]
"""An evaluation that is still under way when step 1 has been scored."""


def step_record(run, step):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(line for line in lines if (line["kind"], line["step"]) == ("step", step))


def wait_until_scored(process, run):
    """Step 1's batch is written once it is scored; by then the engines evaluate."""
    deadline = time.monotonic() + 280
    while not (run / "batches" / "step_1.npz").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    assert '"evaluation"' not in (run / "metrics.jsonl").read_text()


def test_the_same_answers_and_the_same_run(straight, tmp_path):
    process, mark = start(tmp_path, *RUN, "train.steps=6", BEHIND)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_no_survivors(mark)
    run = tmp_path / "quickstart"
    assert records(run) == records(straight)
    assert [(r["kind"], r["step"]) for r in records(run) if r["kind"] == "evaluation"] == [
        ("evaluation", 0), ("evaluation", 3), ("evaluation", 6)
    ]  # fmt: skip
    assert (run / "rollouts.jsonl").read_text() == (straight / "rollouts.jsonl").read_text()
    same_bits(run / "checkpoints" / "step_6", straight / "checkpoints" / "step_6")
    waited = [step for step in range(1, 7) if "time/evaluate_s" in step_record(run, step)]
    assert waited == [1, 4], "not within the steps after"
    assert not any("time/evaluate_s" in step_record(straight, step) for step in range(1, 7))


def test_an_engine_that_dies_meanwhile_costs_the_evaluation_only(tmp_path):
    process, mark = start(tmp_path, *RUN, "train.steps=2", *LONG)
    run = tmp_path / "quickstart"
    wait_until_scored(process, run)
    os.kill(last_pid(run, "engine_0"), signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "evaluation at step 0 is left out: all engines had to be started again" in out
    kept = [(r["kind"], r["step"]) for r in records(run)]
    assert kept == [("step", 1), ("step", 2), ("evaluation", 2)]
    assert_no_survivors(mark)


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
    kept = [(r["kind"], r["step"]) for r in records(run)]
    assert kept == [("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2)]
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
