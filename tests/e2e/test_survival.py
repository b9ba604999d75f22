"""Ranks that hang or die again and again in a running job. (One that dies: test_resume.py.)"""

import os
import re
import signal
import time

import pytest

from tests.conftest import RUN, TAKES_MINUTES
from tests.e2e.driver import as_soon_as, assert_no_survivors, has_step, last_pid, living, records, start, wait_for

pytestmark = pytest.mark.e2e


def test_a_rank_that_hangs_is_started_again_before_the_first_checkpoint(straight, shared, tmp_path):
    """Rank 1 sleeps where it should train; rank 0 waits for it. The logs have the stacks of both; and the run goes on
    from its beginning as if nothing had been."""

    def spoil(process):
        def oversleep(*_):
            time.sleep(100)

        process.worker.train_step = oversleep

    run, rank, sleeper = tmp_path / "quickstart", shared.handle("actor rank 1"), shared.pid("actor rank 1")
    logs = [shared.logs / f"actor_rank_{rank}.log" for rank in (0, 1)]
    begun = [len(log.read_text()) for log in logs]
    with as_soon_as(lambda: has_step(run, 1), lambda: rank.__ray_call__.remote(spoil)):
        ended = shared.train(tmp_path, *RUN, "train.steps=3", "actor.timeout_s=10")
    assert ended.status == 0, ended.err
    assert "train_step: no answer from actor rank 0, actor rank 1 within 10 s" in ended.out
    assert f"what they were at is in {shared.logs}/{{actor_rank_0.log,actor_rank_1.log}}" in ended.out
    waiting, asleep = (log.read_text()[begin:] for log, begin in zip(logs, begun, strict=True))
    assert "in oversleep" in asleep
    assert re.search(r"Timeout \(0:00:09", waiting) and "in forward_backward" in waiting
    assert "torch/distributed" in waiting
    assert shared.pid("actor rank 1") != sleeper
    assert records(run) == records(straight)[: len(records(run))]


@TAKES_MINUTES
def test_a_rank_that_stands_still_is_started_again_before_the_first_checkpoint(straight, tmp_path):
    process, mark = start(tmp_path, *RUN, "train.steps=2", "actor.timeout_s=20")
    run = tmp_path / "quickstart"
    wait_for(process, "step 1/")
    os.kill(last_pid(run, "actor_rank_1"), signal.SIGSTOP)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert re.search(r"no answer from .*actor rank 1 within 20 s", out)
    other = (run / "logs" / "attempt_1" / "actor_rank_0.log").read_text()
    assert "Timeout (0:00:19)!" in other and "megatron_nft/actor/" in other, other
    assert_no_survivors(mark)
    steps = [record for record in records(straight) if record["kind"] == "step"]
    assert [record for record in records(run) if record["kind"] == "step"] == steps[:2]


@TAKES_MINUTES
def test_a_rank_that_dies_again_and_again_ends_the_run(tmp_path):
    process, mark = start(tmp_path, *RUN, "train.steps=50", "data.held_out=[]", "cluster.max_restarts=1")
    run, killed = tmp_path / "quickstart", None
    wait_for(process, "step 1/")
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if (pid := last_pid(run, "actor_rank_0")) != killed and pid in living(mark):
            time.sleep(1.0)  # it may be starting, loading or training by now
            os.kill(pid, signal.SIGKILL)
            killed = pid
        time.sleep(0.1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert "actor rank 0 died" in err
    assert "started again 1 times in a row without getting beyond step 1 (cluster.max_restarts)" in err
    assert_no_survivors(mark)
