"""Training jobs on a real Slurm with emulated nodes: the 32B job's script, with the quickstart's model on CPUs.

A push submits one that trains to its end; what jobs do when something ends them waits for --all, as do bad input and
the other scripts (test_several_jobs.py). What is not here, for its minutes, and is tried by hand: see slurm/README.md,
"What has been tried".
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.jobs import NEEDS_SLURM, TRAIN, assert_nothing_is_left, poll_for, wait_for

pytestmark = NEEDS_SLURM
JOBS = sorted(Path("slurm").glob("*.sbatch"))
night = pytest.mark.night


def train_steps(run):
    """Numbers of the steps in a run's metrics, in the order of the file."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if record["kind"] == "step"]


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_slurm_accepts_the_job(slurm, script):
    done = subprocess.run(["sbatch", "--test-only", script], env=slurm.environment, capture_output=True, text=True)
    assert done.returncode == 0 and "to start at" in done.stderr, done.stderr


def test_slurm_refuses_more_nodes_than_there_are(slurm):
    done = subprocess.run(
        ["sbatch", "--test-only", "--nodes=17", "slurm/nft_32b.sbatch"],
        env=slurm.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0 and "Requested node configuration is not available" in done.stderr, done.stderr


def test_a_job_of_two_nodes_trains_to_its_end(slurm, submit, tmp_path):
    job, output = submit(TRAIN, "run.name=a", "train.steps=2", sbatch=["--nodes=2"])
    state = wait_for(slurm, job, output, 200)
    text = output.read_text()
    assert state == "COMPLETED", text
    assert "2 have joined Ray: n1, n2" in text and " 0 FAIL in " in text and "requeued" not in text
    assert train_steps(tmp_path / "runs" / "a") == [1, 2]
    assert (tmp_path / "runs" / "a" / "hf" / "config.json").is_file()
    logs = tmp_path / "runs" / "slurm" / job / "attempt_0"
    assert {"n1", "n2", "driver.log", "preflight.log", "ray.log"} <= set(os.listdir(logs))
    assert_nothing_is_left(slurm)


def test_preflight_alone_never_requeues_and_a_container_site_gets_its_container(slurm, submit, tmp_path):
    """The time limit is that of --signal, so that Slurm warns at once: that requeued the job for ever. The srun is one
    that takes pyxis's options; its container is this machine."""
    path = f"{Path('tests/slurm/pyxis').resolve()}:{sys.prefix}/bin:{slurm.environment['PATH']}"
    site = ["NFT_CONTAINER=image.sqsh", "NFT_VENV=", "NFT_UMASK=077", "NFT_CPUS_PER_NODE=2"]
    options = ["--nodes=1", "--time=00:10:00"]
    job, output = submit(TRAIN, sbatch=options, site=site, NFT_PREFLIGHT_ONLY="1", PATH=path)
    array, refused = submit(TRAIN, sbatch=["--nodes=1", "--array=1"])
    short, told = submit(TRAIN, sbatch=options)
    logs = tmp_path / "runs/slurm" / job / "attempt_0"
    wait_for(slurm, job, output, 60, line="pyxis: ")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    poll_for(logs / "joined.0", 60)
    address = re.search(r"Ray is starting at (\S+)", output.read_text())[1]
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    client = [sys.executable, "-c", f"from ray._raylet import GcsClient; GcsClient(address={address!r})"]
    told_off = subprocess.run(client, env=others, capture_output=True, text=True, timeout=60)
    assert "AuthenticationError" in told_off.stderr, told_off
    state = wait_for(slurm, job, output, 120)
    text = output.read_text()
    assert state == "COMPLETED", text
    assert " 0 FAIL in " in text and text.rstrip().endswith(" done"), text
    assert slurm.job(job)["Restarts"] == "0" and "no training will begin in this attempt" in text
    mounts = f"{Path.cwd()},{tmp_path}/runs,{slurm.scratch}"
    assert "pyxis: --container-image=image.sqsh" in text and f"pyxis: --container-mounts={mounts}" in text
    assert not (logs / "ray_token").exists() and logs.stat().st_mode & 0o777 == 0o700
    assert wait_for(slurm, short, told, 30) == "FAILED"
    assert "--time is 600 s, and --signal warns 600 s before that" in told.read_text()
    assert wait_for(slurm, array, refused, 30) == "FAILED"
    assert "name each one's: run.name=mine_%a" in refused.read_text()
    assert_nothing_is_left(slurm)


@night("Slurm's own requeue, time after time, of attempts that save nothing")
def test_attempts_in_vain_come_to_an_end(slurm, submit, tmp_path):
    (tmp_path / "driver_in_vain.py").write_text("raise SystemExit(75)\n")
    job, output = submit(
        TRAIN, "run.name=a", sbatch=["--nodes=1"], site=["NFT_MAX_ATTEMPTS=2", "NFT_CPUS_PER_NODE=2"],
        NFT_DRIVER="driver_in_vain", PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert wait_for(slurm, job, output, 240) == "FAILED", output.read_text()
    text = output.read_text()
    assert slurm.job(job)["Restarts"] == "1" and text.count("requeued: the next attempt") == 1
    assert "not requeued: 2 attempts in a row have brought no checkpoint after step 0 (NFT_MAX_ATTEMPTS=2)" in text


@night("all nodes of the published job")
def test_sixteen_nodes_join_ray_and_pass_preflight(slurm, submit):
    job, output = submit(TRAIN, "actor.dp=8", NFT_PREFLIGHT_ONLY="1", NFT_RAY_TIMEOUT_S="300")
    state = wait_for(slurm, job, output, 400)
    text = output.read_text()
    assert state == "COMPLETED", text
    assert "16 have joined Ray: n1, n2, n3, n4 and 12 more" in text and " 0 FAIL in " in text
    assert "ok    between nodes" in text or "warn  between nodes" in text
    assert_nothing_is_left(slurm)


@night("preflight on real nodes that differ; tests/unit/preflight has its findings")
def test_preflight_names_bad_nodes(slurm, submit, tmp_path):
    from importlib.metadata import distribution

    (metadata,) = [f.locate() for f in distribution("transformers").files if f.name == "METADATA"]
    older = tmp_path / "METADATA"
    older.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.18.0\n")
    model = Path("tests/assets/quickstart/model").resolve()
    slurm.on_node("n2", "mount", "--bind", str(older), str(metadata))
    slurm.on_node("n3", "mount", "-t", "tmpfs", "tmpfs", str(model))
    try:
        job, output = submit(TRAIN, "actor.tp=2", sbatch=["--nodes=4", "--nodelist=n1,n2,n3,n4"])
        state = wait_for(slurm, job, output, 120)
    finally:
        slurm.on_node("n2", "umount", str(metadata))
        slurm.on_node("n3", "umount", str(model))
    text = output.read_text()
    assert state == "FAILED", text
    assert "FAIL  versions       n2: transformers 5.18.0" in text
    assert "FAIL  same versions  n2\n" in text and "transformers is 5.18.0, elsewhere" in text
    assert "FAIL  recipe         n3: " in text and "FAIL  same files     n3\n" in text
    assert "FAIL  room for all   tp 2 x pp 1 x dp 1\n" in text
    assert "actor.tp = 2 needs 2 CPU slots of one node, and Ray has 4 on 4 nodes (n1 1, n2 1, n3 1, n4 1)" in text
    assert "lower actor.tp, and raise actor.pp or actor.dp" in text
    assert "actor: " not in text, "training has begun"
    assert_nothing_is_left(slurm)


@night("the requeue, its checkpoint and its exit statuses in a real job")
def test_a_run_goes_on_after_a_cancel_a_lost_node_and_the_time_limit(slurm, submit, tmp_path):
    """One run in two jobs and four attempts: each end is what it should be, and the metrics have every step once. The
    second job trains asynchronously: each driver goes on from the other's checkpoint."""
    run, settings = tmp_path / "runs" / "a", [TRAIN, "run.name=a", "train.steps=7"]

    cancelled, output = submit(*settings, "checkpoint.every=100", sbatch=["--nodes=2"])
    wait_for(slurm, cancelled, output, 150, line="step 1/")
    slurm.run("scancel", "--batch", "--signal=TERM", cancelled)
    assert wait_for(slurm, cancelled, output, 60) == "CANCELLED", output.read_text()
    assert "SIGTERM: ending" in output.read_text() and "ended: the same sbatch goes on" in output.read_text()
    saved = train_steps(run)[-1]
    assert (run / "checkpoints" / "latest").resolve().name == f"step_{saved}"
    assert_nothing_is_left(slurm)

    job, output = submit(*settings, "checkpoint.every=1", sbatch=["--nodes=2"], NFT_DRIVER="megatron_nft.train_async")
    wait_for(slurm, job, output, 150, line="step ")
    assert f"resumed from {run}/checkpoints/step_{saved}" in output.read_text()
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait_for(slurm, job, output, 200, line="step ", attempt=1)
    assert slurm.job(job)["Restarts"] == "1" and "DUE TO NODE FAILURE" in output.read_text()
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    state = wait_for(slurm, job, output, 200)
    text = output.read_text()
    assert state == "COMPLETED", text
    assert "SIGUSR1: the time is nearly up" in text and "requeued: the next attempt" in text
    assert slurm.job(job)["Restarts"] == "2" and text.count("resumed from ") == 3
    assert train_steps(run) == [1, 2, 3, 4, 5, 6, 7]
    for attempt in ("attempt_0", "attempt_1", "attempt_2"):
        logs = tmp_path / "runs" / "slurm" / job / attempt
        assert {"n1", "driver.log", "preflight.log", "ray.log"} <= set(os.listdir(logs))
        assert (logs / "n1" / "raylet.out").exists()
    assert_nothing_is_left(slurm)


@night("a plain scancel: nothing is left, and the same sbatch goes on")
def test_scancel_of_a_training(slurm, submit, tmp_path):
    settings = [TRAIN, "train.steps=4", "run.name=a", "checkpoint.every=1"]
    job, output = submit(*settings, sbatch=["--nodes=2"])
    wait_for(slurm, job, output, 150, line="step 3/")
    slurm.run("scancel", job)
    assert wait_for(slurm, job, output, 60) == "CANCELLED", output.read_text()
    assert_nothing_is_left(slurm)
    job, output = submit(*settings, sbatch=["--nodes=2"])
    assert wait_for(slurm, job, output, 150) == "COMPLETED", output.read_text()
    assert "resumed from " in output.read_text() and train_steps(tmp_path / "runs" / "a") == [1, 2, 3, 4]


@night("a node whose processes are gone, not one that Slurm was told of")
def test_a_node_that_dies_costs_an_attempt(slurm, submit, tmp_path):
    job, output = submit(TRAIN, "train.steps=6", "run.name=a", "checkpoint.every=2", sbatch=["--nodes=2"])
    wait_for(slurm, job, output, 150, line="step 3/")
    slurm.node_down("n2")
    state = wait_for(slurm, job, output, 240)
    assert state == "COMPLETED", output.read_text()
    assert slurm.job(job)["Restarts"] == "1" and "resumed from " in output.read_text()
    assert train_steps(tmp_path / "runs" / "a") == [1, 2, 3, 4, 5, 6]


@night("the job script starts a killed driver again")
def test_a_driver_that_is_killed_goes_on_in_the_same_attempt(slurm, submit, tmp_path):
    job, output = submit(TRAIN, "train.steps=4", "run.name=a", "checkpoint.every=1", sbatch=["--nodes=2"])
    wait_for(slurm, job, output, 150, line="step 2/")
    os.kill(int((tmp_path / "runs" / "slurm" / job / "attempt_0" / "driver.pid").read_text()), signal.SIGKILL)
    assert wait_for(slurm, job, output, 150) == "COMPLETED", output.read_text()
    text = output.read_text()
    assert "the driver was killed (exit status 137): starting it again, from the last checkpoint (1 of 3)" in text
    assert slurm.job(job)["Restarts"] == "0" and text.count("resumed from ") == 1
    assert train_steps(tmp_path / "runs" / "a") == [1, 2, 3, 4]
    assert_nothing_is_left(slurm)
