"""The job scripts on a real Slurm with emulated nodes: the 32B job's script, with the quickstart's model on CPUs.

What is not here, for its minutes, and is tried by hand: see slurm/README.md, "What has been tried".
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.emulated import EmulatedSlurm, why_not

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(why_not() is not None, reason=f"no Slurm here: {why_not()}")]
JOBS = sorted(Path("slurm").glob("*.sbatch"))
SMALL = ["actor.tp=1", "rollout.engines=1", "weights.carrier=collective", "train.groups_per_step=8",
         "evaluate.samples=0", "evaluate.max_prompts=8", "rollout.kv_cache_gib=0.25"]  # fmt: skip
LONG = pytest.mark.skipif("NFT_LONG_TESTS" not in os.environ, reason="2-3 minutes: set NFT_LONG_TESTS=1")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@pytest.fixture(scope="module")
def slurm():
    with EmulatedSlurm(16) as cluster:
        yield cluster


@pytest.fixture
def submit(slurm, tmp_path):
    """Submits the 32B job's script; returns its id and the file of its output."""
    venv = Path(sys.prefix)
    (tmp_path / "site.env").write_text(
        f"NFT_HOME={Path.cwd()}\nNFT_RUNS={tmp_path}/runs\nNFT_LOCAL_DIR={slurm.scratch}\nNFT_VENV={venv}\n"
        "NFT_CPUS_PER_NODE=1\nNFT_GPUS_PER_NODE=0\nexport NFT_OBJECT_STORE_BYTES=80000000 NFT_RAY_AT_ONCE=4\n"
    )

    def submit(*settings, sbatch=(), **environment):
        variables = {"NFT_SITE": f"{tmp_path}/site.env", "NFT_RECIPE": "launch/recipes/quickstart.toml", **environment}
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={tmp_path}/%j.out", *sbatch, "slurm/nft_32b.sbatch", *SMALL, *settings],
            env=slurm.environment | variables, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        job = done.stdout.strip()
        return job, tmp_path / f"{job}.out"

    return submit


def wait_for(slurm, job, output, within_s, *, line=None):
    """Until the job has ended, or has printed a line that begins so; its state."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if line and output.exists() and any(each.startswith(line) for each in output.read_text().splitlines()):
            return "RUNNING"
        state = slurm.job(job)["JobState"]
        if state in ENDED:
            break
        time.sleep(0.5)
    text = output.read_text() if output.exists() else ""
    assert state in ENDED and line is None, f"{state} after {within_s} s\n{text}"
    return state


def assert_nothing_is_left(slurm):
    deadline = time.monotonic() + 20
    while slurm.processes() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert slurm.processes() == []
    assert list(slurm.scratch.iterdir()) == []


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_slurm_accepts_the_job(slurm, script):
    done = subprocess.run(["sbatch", "--test-only", script], env=slurm.environment, capture_output=True, text=True)
    assert done.returncode == 0 and "to start at" in done.stderr, done.stderr


def test_slurm_refuses_more_nodes_than_there_are(slurm):
    done = subprocess.run(
        ["sbatch", "--test-only", "--nodes=17", "slurm/nft_32b.sbatch"],
        env=slurm.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0


@LONG
def test_sixteen_nodes_join_ray_and_pass_preflight(slurm, submit):
    job, output = submit("actor.dp=8", NFT_PREFLIGHT_ONLY="1", NFT_RAY_TIMEOUT_S="300")
    state = wait_for(slurm, job, output, 400)
    text = output.read_text()
    assert state == "COMPLETED", text
    assert "16 have joined Ray: n1, n2, n3, n4 and 12 more" in text and " 0 FAIL in " in text
    assert "ok    between nodes" in text or "warn  between nodes" in text
    assert_nothing_is_left(slurm)


def test_preflight_names_bad_nodes(slurm, submit, tmp_path):
    from importlib.metadata import distribution

    (metadata,) = [f.locate() for f in distribution("transformers").files if f.name == "METADATA"]
    older = tmp_path / "METADATA"
    older.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.18.0\n")
    model = Path("tests/assets/quickstart/model").resolve()
    slurm.on_node("n2", "mount", "--bind", str(older), str(metadata))
    slurm.on_node("n3", "mount", "-t", "tmpfs", "tmpfs", str(model))
    try:
        job, output = submit("actor.dp=2", sbatch=["--nodes=4", "--nodelist=n1,n2,n3,n4"])
        state = wait_for(slurm, job, output, 120)
    finally:
        slurm.on_node("n2", "umount", str(metadata))
        slurm.on_node("n3", "umount", str(model))
    text = output.read_text()
    assert state == "FAILED", text
    assert "FAIL  versions       n2: transformers 5.18.0" in text
    assert "FAIL  same versions  n2\n" in text and "transformers is 5.18.0, elsewhere" in text
    assert "FAIL  recipe         n3: " in text and "FAIL  same files     n3\n" in text
    assert "actor: " not in text, "training has begun"
    assert_nothing_is_left(slurm)


def test_usr1_requeues_the_job_and_its_metrics_go_on(slurm, submit, tmp_path):
    job, output = submit("train.steps=5", "run.name=a", "checkpoint.every=100", sbatch=["--nodes=2"])
    wait_for(slurm, job, output, 150, line="step 2/")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    state = wait_for(slurm, job, output, 180)
    text = output.read_text()
    assert state == "COMPLETED", text
    assert slurm.job(job)["Restarts"] == "1"
    assert "SIGUSR1: the time is nearly up" in text and "requeued: the next attempt" in text
    run = tmp_path / "runs" / "a"
    assert f"resumed from {run}/checkpoints/step_" in text
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4, 5]
    for attempt in ("attempt_0", "attempt_1"):
        logs = tmp_path / "runs" / "slurm" / job / attempt
        assert {"n1", "n2", "driver.log", "preflight.log", "ray.log"} <= set(os.listdir(logs))
        assert (logs / "n2" / "raylet.out").exists()
    assert_nothing_is_left(slurm)


@LONG
def test_a_node_that_goes_down_costs_an_attempt(slurm, submit, tmp_path):
    job, output = submit("train.steps=6", "run.name=a", "checkpoint.every=2", sbatch=["--nodes=2"])
    wait_for(slurm, job, output, 150, line="step 3/")
    slurm.node_down("n2")
    state = wait_for(slurm, job, output, 240)
    text = output.read_text()
    assert state == "COMPLETED", text
    assert slurm.job(job)["Restarts"] == "1" and "resumed from " in text
    records = [json.loads(line) for line in (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
