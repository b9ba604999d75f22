"""CUDA_DEVICE_MAX_CONNECTIONS, which a process has before it touches CUDA, or never: hence no torch here.

A layout goes in; the environment of this process changes. Called first of all by whoever starts a rank:
cluster/ranks.py and smoke.
"""

import os
import subprocess

VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"
BLACKWELL = 10
"""Compute capability of the first devices that launch kernels of several queues in order."""


def limit_connections(*, tp: int, cp: int) -> None:
    """One hardware queue a device where layers exchange messages, as Megatron-LM asks for before Blackwell.

    Kernels then start in the order in which they were launched, and a message is not late behind the product that is to
    run beside it. A value that is set already stays; later devices, and ones that can't be asked, get none.
    """
    if max(tp, cp) == 1 or VARIABLE in os.environ:
        return
    generation = _generation()
    if generation is not None and generation < BLACKWELL:
        os.environ[VARIABLE] = "1"


def _generation() -> int | None:
    """Major compute capability of this machine's devices, from the driver's own program, since CUDA must not start."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        return min(int(line.partition(".")[0]) for line in said.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
