"""The tools start as modules and as files, from here and from elsewhere: nothing here hides a module of Python."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = ("hf_to_megatron", "megatron_to_hf", "verify", "show")
FOLDER = Path("checkpoint_tools").resolve()


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_starts_both_ways(tool, tmp_path):
    calls = [
        (["-m", f"checkpoint_tools.{tool}"], Path.cwd()),
        ([str(FOLDER / f"{tool}.py")], tmp_path),
    ]
    started = [
        subprocess.Popen(
            [sys.executable, *call, "--help"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for call, folder in calls
    ]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
    assert all(status == 0 for *_, status in ended), ended
    assert len({out for out, *_ in ended}) == 1 and "Exit status: 0 " in ended[0][0]


def test_inspect_is_another_name_of_show():
    done = subprocess.run(
        [sys.executable, "-m", "checkpoint_tools.inspect", "/nowhere"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "megatron-nft inspect: /nowhere: no such folder" in done.stderr


def test_no_file_hides_a_module_of_python():
    """A tool that is run as a file has this folder first on its path."""
    assert not {path.stem for path in FOLDER.iterdir()} & sys.stdlib_module_names - {"__init__"}
