"""Submitting jobs and waiting for them, for the tests on an emulated Slurm (emulated.py)."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.emulated import EmulatedSlurm, why_not

NEEDS_SLURM = [pytest.mark.slurm, pytest.mark.skipif(why_not() is not None, reason=f"no Slurm here: {why_not()}")]
TRAIN = "slurm/nft_32b.sbatch"
SMALL = ["actor.tp=1", "rollout.engines=1", "weights.carrier=collective", "train.groups_per_step=8",
         "evaluate.samples=0", "evaluate.max_prompts=8", "rollout.kv_cache_gib=0.25"]  # fmt: skip
CLOCK = r"(?:\d\d:\d\d:\d\d )?"
"""Before every line of a run's log."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Submit:
    """Called with a script and its arguments: its job's id, and the file of its output."""

    def __init__(self, slurm: EmulatedSlurm, folder: Path) -> None:
        self._slurm, self._folder, self._sites = slurm, folder, 0

    def __call__(self, script: str, *arguments: str, sbatch=(), site=(), **environment: str) -> tuple[str, Path]:
        """
        Args:
            arguments: of the script; the training's come on top of SMALL.
            site: lines that come last in site.env.
        """
        self._sites += 1
        file = self._folder / f"site{self._sites}.env"
        lines = [
            f"NFT_HOME={Path.cwd()}", f"NFT_RUNS={self._folder}/runs", f"NFT_LOCAL_DIR={self._slurm.scratch}",
            f"NFT_VENV={sys.prefix}", "NFT_CPUS_PER_NODE=1", "NFT_GPUS_PER_NODE=0",
            "export NFT_OBJECT_STORE_BYTES=80000000 NFT_RAY_AT_ONCE=4", *site,
        ]  # fmt: skip
        file.write_text("\n".join(lines) + "\n")
        variables = {"NFT_SITE": str(file), "NFT_RECIPE": "launch/recipes/quickstart.toml", **environment}
        own = SMALL if script == TRAIN else []
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={self._folder}/%j.out", *sbatch, script, *own, *arguments],
            env=self._slurm.environment | variables, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        job = done.stdout.strip()
        return job, self._folder / f"{job}.out"


def wait_for(slurm, job, output, within_s, *, line=None, attempt=0):
    """Until the job has ended, or has printed a line that begins so in an attempt; its state."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        text = output.read_text() if output.exists() else ""
        _, begun, words = text.partition(f"job {job}, attempt {attempt},")
        if line and begun and any(re.match(CLOCK + re.escape(line), each) for each in words.splitlines()):
            return "RUNNING"
        state = slurm.job(job)["JobState"]
        if state in ENDED:
            break
        time.sleep(0.5)
    assert state in ENDED and line is None, f"{state} after {within_s} s\n{text}"
    return state


def poll_for(file, within_s):
    """Until it is there."""
    deadline = time.monotonic() + within_s
    while not file.exists():
        assert time.monotonic() < deadline, f"no {file} after {within_s} s"
        time.sleep(0.2)


def assert_nothing_is_left(slurm):
    """No process of a job on any node, and no file of Ray's."""
    deadline = time.monotonic() + 20
    while (slurm.processes() or list(slurm.scratch.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert slurm.processes() == []
    assert list(slurm.scratch.iterdir()) == []
