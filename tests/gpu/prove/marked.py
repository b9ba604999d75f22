"""Every test that is marked gpu.

python -m tests.gpu.prove.marked
"""

import re
import subprocess
import sys

from tests.gpu.prove.report import figure

NOTHING_TO_RUN = 5
"""pytest's exit status where everything was left out."""
NAME = re.compile(r"^tests/gpu/\S+::(?P<name>.+?)\s*$")
RESULT = re.compile(r"(?:::(?P<before>.+?) )?\b(?P<result>PASSED|FAILED|ERROR|SKIPPED)\b")
"""On the line that begins with the test's name, or, after what it printed itself, on a later one."""


def main() -> int:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-v", "-s", "-rs", "-p", "no:cacheprovider"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        last = name = ""
        for line in tests.stdout:
            print(line, end="", flush=True)
            if line.startswith("SKIPPED ["):  # of the summary
                figure("why skipped", line.split("] ", 1)[1].strip())
            elif found := RESULT.search(line):
                figure(found["before"] or name, found["result"].lower())
            elif begun := NAME.search(line):
                name = begun["name"]
            last = line.strip() or last
    figure("pytest -m gpu", last.strip("= "))
    return 0 if tests.returncode == NOTHING_TO_RUN else tests.returncode


if __name__ == "__main__":
    sys.exit(main())
