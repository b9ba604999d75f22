"""Processes that die or hang in a running job: new ones take their place, and the run goes on from its checkpoint."""

import os
import re
import signal
import time

import pytest

from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.processes import ProcessLost, new_attempt
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from megatron_nft.observe.batches import load_batch
from tests.conftest import RUN, TAKES_MINUTES
from tests.e2e.test_resume import records, same_bits, wait_for
from tests.e2e.test_train import assert_no_survivors, living, start

pytestmark = pytest.mark.e2e


def last_pid(run, name):
    """Of "actor_rank_1", by its log."""
    return int(re.findall(r"=== process (\d+) on", (run / "logs" / "attempt_1" / f"{name}.log").read_text())[-1])


def test_a_rank_that_dies_is_started_again_and_nothing_changes(straight, tmp_path):
    """Killed after step 5, with an engine; the checkpoint is of step 3. The run's overwrite must not count twice."""
    process, mark = start(tmp_path, *RUN, "train.steps=6", "run.overwrite=true")
    run = tmp_path / "quickstart"
    wait_for(process, "step 5/")
    engine = last_pid(run, "engine_0")
    os.kill(last_pid(run, "actor_rank_1"), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert re.search(r": actor rank 1 died: ", out) and "starting all ranks again, from the last checkpoint ..." in out
    assert f"what they said is in {run}/logs/attempt_1/{{actor_rank_1.log}}" in out
    assert f"resumed from {run}/checkpoints/step_3: step 3" in out and "step 4/6" in out
    assert last_pid(run, "engine_0") == engine, "an engine that lives was started again"
    assert_no_survivors(mark)
    assert records(run) == records(straight)
    same_bits(run / "checkpoints" / "step_6", straight / "checkpoints" / "step_6")


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


@pytest.fixture(scope="module")
def config():
    return load_config("launch/recipes/quickstart.toml", ["actor.timeout_s=20"])


def test_a_hang_leaves_the_stacks_of_all_ranks(config, tmp_path):
    """Rank 1 sleeps where it should train; rank 0 waits for it."""
    logs = new_attempt(tmp_path)
    batch = pack(load_batch("tests/assets/quickstart/batch.npz"), num_updates=1, dp=1, tokens_per_microbatch=4096)
    with ray_cluster(config) as placement:
        actors = Actors(config, placement, logs)
        actors.begin_build().wait()

        def spoil(process):
            def oversleep(*_):
                time.sleep(100)

            process.worker.train_step = oversleep

        actors._ranks["actor rank 1"].__ray_call__.remote(spoil)
        with pytest.raises(ProcessLost) as caught:
            actors.train_step(batch)
    assert "train_step: no answer from actor rank 0, actor rank 1 within 20 s" in str(caught.value)
    assert f"what they were at is in {logs}/{{actor_rank_0.log,actor_rank_1.log}}" in str(caught.value)
    assert "in oversleep" in (logs / "actor_rank_1.log").read_text()
    waiting = (logs / "actor_rank_0.log").read_text()
    assert "in forward_backward" in waiting and "torch/distributed" in waiting
