"""Every test that is marked gpu.

python -m tests.gpu.prove.marked
"""

import re
import subprocess
import sys

from tests.gpu.prove.report import figure

NOTHING_TO_RUN = 5
"""pytest's exit status where everything was left out."""


def main() -> int:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-v", "-s", "-rs", "-p", "no:cacheprovider"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        last, name = "", None
        for line in tests.stdout:
            print(line, end="", flush=True)
            if found := re.search(r"(PASSED|FAILED|ERROR|SKIPPED)\b *(.*)", line):
                name = re.search(r"::(\S.*?) (?=PASSED|FAILED|ERROR|SKIPPED)", line) or name
                figure(name[1] if name else "?", found[1].lower(), note=found[2][:160])
            elif name_here := re.search(r"::(\S.*)", line):
                name = name_here
            last = line.strip() or last
    figure("pytest -m gpu", last.strip("= "))
    return 0 if tests.returncode == NOTHING_TO_RUN else tests.returncode


if __name__ == "__main__":
    sys.exit(main())
