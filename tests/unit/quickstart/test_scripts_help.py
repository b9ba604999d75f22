"""A script that is asked for help gives it, and does nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted(path.name for path in Path("launch").glob("*.sh") if path.name != "eval.sh")  # which the others call


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_comes_before_all_else(tmp_path, name, asked):
    shutil.copytree("launch", tmp_path / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    before = {path.name for path in tmp_path.iterdir()}
    environment = {**os.environ, "PYTHON": "/nowhere/python"}
    call = [str(tmp_path / "launch" / name), asked]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=30)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert f"launch/{name}" in done.stdout and "set -" not in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == before


def test_another_folders_environment_is_not_taken(tmp_path):
    """By a link: it would run this folder's program from then on."""
    for owner in ("theirs", "mine"):
        shutil.copytree("launch", tmp_path / owner / "launch", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("requirements.txt", "requirements-vllm-cpu.txt", "pyproject.toml"):
            shutil.copy(name, tmp_path / owner)
    theirs = tmp_path / "theirs" / ".venv"
    theirs.mkdir()
    (theirs / ".installed").write_text(f"as it was\n{tmp_path}/theirs\n")
    (tmp_path / "mine" / ".venv").symlink_to(theirs)
    done = subprocess.run([tmp_path / "mine/launch/install.sh"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and f"is a link to that of {tmp_path}/theirs" in done.stderr
    assert [path.name for path in theirs.iterdir()] == [".installed"]
