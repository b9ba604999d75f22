"""CUDA_DEVICE_MAX_CONNECTIONS, which a process has before it touches CUDA, or never: hence no torch here.

A layout goes in, and variables for a rank's process come out: cluster/ranks.py starts it with them, smoke, which is a
rank itself, takes them first of all.
"""

import os
import subprocess

VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"
BLACKWELL = 10
"""Compute capability of the first devices that start kernels of several queues in the order of their launch."""


def connections(*, tp: int, cp: int, generation: int | None) -> dict[str, str]:
    """One hardware queue a device where layers exchange messages, as Megatron-LM asks for before Blackwell.

    Kernels then start in the order in which they were launched, and a message is not late behind the product that is to
    run beside it. A value that is set already stays.

    Args:
        generation: of the device that the rank will have; see `device_generation`.
    """
    if max(tp, cp) == 1 or VARIABLE in os.environ or generation is None or generation >= BLACKWELL:
        return {}
    return {VARIABLE: "1"}


def device_generation() -> int | None:
    """Major compute capability of this machine's devices, from the driver's own program, since CUDA must not start.
    None: there are none, or they can't be asked."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        return min(int(line.partition(".")[0]) for line in said.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
