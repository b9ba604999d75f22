"""The GPUs of this machine, from the driver's own program: CUDA is not started."""

import subprocess

from megatron_nft.plan.hardware import SHIPPED_NAMES

DEFAULT = "H100"


def hardware_at_hand() -> tuple[int, str]:
    """How many GPUs there are, and which of the planner's tables they are; DEFAULT if none of them."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return 0, DEFAULT
    names = [line for line in said.splitlines() if line.strip()]
    return len(names), next((kind for kind in SHIPPED_NAMES if names and kind in names[0]), DEFAULT)
