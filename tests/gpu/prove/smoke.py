"""The command `smoke` in one number format, if this device has it.

python -m tests.gpu.prove.smoke fp8-blockwise
"""

import re
import subprocess
import sys

import torch

from megatron_nft.actor.precision import PrecisionError, check_device
from tests.gpu.prove.report import figure, is_dry


def main(precision: str) -> int:
    if is_dry():
        precision = "fp32"
    else:
        try:
            check_device(precision, torch.cuda.get_device_capability(), torch.cuda.get_device_name())
        except PrecisionError as error:
            figure(f"smoke {precision}", "skipped", note=str(error))
            return 0
    command = [sys.executable, "-m", "megatron_nft.smoke", "--precision", precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    print(done.stdout)
    for line in lines:
        if line.startswith(("ok  ", "FAIL")):
            name, _, words = line[5:].partition(": ")
            figure(name, line[:4].strip(), note=words)
    for line in lines:
        if found := re.match(r"smoke: (\d+) passed, (\d+) failed", line):
            figure(f"smoke {precision}", f"{found[1]} passed, {found[2]} failed")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
