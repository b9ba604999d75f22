"""A handful of disturbances at random places (README.md), in a process of its own: it forks drivers."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e


def kill_often(*arguments):
    """What `python -m tests.chaos.kills` says, if every run went on."""
    command = [sys.executable, "-m", "tests.chaos.kills", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_run_goes_on():
    said = kill_often("--kills", 4, "--seed", 1, "--only", "SIGKILL,node,SIGTERM,full disk")
    assert "\n4 disturbances; " in said


@pytest.mark.night("places, kinds and moments that a handful doesn't meet")
@pytest.mark.parametrize("seed", [2, 3])
def test_every_run_goes_on_after_many(seed):
    assert "\n30 disturbances; " in kill_often("--kills", 30, "--seed", seed)
