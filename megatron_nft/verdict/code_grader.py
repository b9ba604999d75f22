"""A grader of Python programs, as an example that works: the answer's last ```python block is run on inputs.

    verdict.modes = {"my/programs" = "megatron_nft.verdict.code_grader:grade"}

A row's extra_info has "cases", a list of {"stdin": ..., "stdout": ...} (or its text as JSON); without it the program's
output is to be the ground truth. What is expected never reaches the program, so that it can't print it, and an early
exit wins nothing. Each case runs in a process of its own, without network and within limits: sandbox.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 4.0
"""All cases of an answer together: below verdict.deadline_s, as a program that is too slow is wrong, not a timeout."""
MEGABYTES = 512
MAX_OUTPUT_CHARS = 100_000

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
_SANDBOX = Path(__file__).with_name("sandbox.py")


def grade(answer: str, ground_truth: str, extra_info: dict[str, Any], **others: Any) -> float:
    """The share of cases whose output is as expected, line by line, but for spaces at the ends."""
    blocks = _BLOCK.findall(answer)
    if not blocks:
        return 0.0
    cases = extra_info.get("cases") or [{"stdin": "", "stdout": ground_truth}]
    cases = json.loads(cases) if isinstance(cases, str) else cases
    until = time.monotonic() + SECONDS
    passed = 0
    with tempfile.TemporaryDirectory(prefix="grade_") as folder:
        program = Path(folder) / "answer.py"
        program.write_text(blocks[-1], encoding="utf-8")
        for case in cases:
            output = run(program, case.get("stdin", ""), until - time.monotonic())
            passed += output is not None and _lines(output) == _lines(case["stdout"])
    return passed / len(cases)


def run(program: Path, stdin: str, seconds: float) -> str | None:
    """What the program prints; None if it fails, or takes too long."""
    if seconds <= 0:
        return None
    command = [sys.executable, "-I", "-S", str(_SANDBOX), str(seconds), str(MEGABYTES), str(program)]
    with (program.parent / "stdout").open("w+", encoding="utf-8", errors="replace") as stdout:
        process = subprocess.Popen(
            command, cwd=program.parent, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.DEVNULL, text=True,
            env={}, start_new_session=True,
        )  # fmt: skip
        try:
            process.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
            process.wait()
        stdout.seek(0)
        return stdout.read(MAX_OUTPUT_CHARS) if process.returncode == 0 else None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
