"""tests/gpu/prove.sh around its parts: each by itself, whatever becomes of the others, and within its time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path("tests/gpu/prove.sh")


def prove(*arguments, **variables):
    command = [str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **variables})


@pytest.fixture
def python(tmp_path):
    """Writes results as it is to, and of the parts only says that they were called; `resume` fails."""
    program = tmp_path / "python"
    program.write_text(f"""#!/bin/bash
case "$*" in
    *prove.report*) exec {sys.executable} "$@" ;;
    *prove.resume*) exit 3 ;;
    *) echo "called: $PROVE_PART $PROVE_DRY $*" ;;
esac
""")
    program.chmod(0o755)
    return str(program)


def test_every_part_has_a_module_and_a_limit_within_the_whole():
    parts = [line.split() for line in prove("--list").stdout.splitlines()]
    assert len(parts) == len({name for name, _ in parts}) == 13
    assert all(10 <= int(limit) <= 300 for _, limit in parts)
    text = SCRIPT.read_text()
    assert "total=470 " in text, "under 8 minutes in all"
    rows = text.partition("parts=(")[2].partition("\n)")[0].splitlines()[1:]
    modules = {row.split()[2].strip('"') for row in rows}
    assert modules == {path.stem for path in Path("tests/gpu/prove").glob("*.py")} - {"__init__", "report", "models"}


def test_a_part_that_fails_stops_no_other(python, tmp_path):
    done = prove("--dry", "--out", str(tmp_path / "out"), "resume", "logprobs", PYTHON=python)
    assert done.returncode == 1 and "called: logprobs 1 -W ignore -m tests.gpu.prove.logprobs" in done.stdout
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    states = {r["part"]: r["state"] for r in map(json.loads, lines) if "state" in r}
    assert states == {"logprobs": "ok", "resume": "FAILED with exit status 3"}
    table = (tmp_path / "out/results.md").read_text()
    assert "a CPU; torch " in table and "| **resume** | **FAILED with exit status 3** |" in table
    assert done.stdout.endswith(
        f"{table}prove: 1 parts not ok, {done.stdout.split()[-3]} s; {tmp_path}/out/results.md\n"
    )


def test_a_part_that_is_none_is_refused():
    done = prove("logprob")
    assert done.returncode == 2 and done.stderr == "prove: no part logprob; --list names them\n"
