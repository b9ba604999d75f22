"""NVIDIA's driver library, as far as loading others goes: every function that vLLM's extension modules want of it, each
of which says that there is no device."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""
WANTED = re.compile(r" U (cu[A-Z]\w*)$", re.MULTILINE)


def extension_modules() -> list[Path]:
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return sorted(Path(spec.origin).parent.rglob("*.so"))


def make_stub(folder: Path) -> Path:
    """libcuda.so.1 in `folder`, for LD_LIBRARY_PATH."""
    if missing := [program for program in ("nm", "cc") if shutil.which(program) is None]:
        pytest.skip(f"no {' and no '.join(missing)} on this machine, to make a libcuda.so.1 with")
    listed = [
        subprocess.run(["nm", "-D", str(module)], capture_output=True, text=True, check=True).stdout
        for module in extension_modules()
    ]
    names = sorted({name for text in listed for name in WANTED.findall(text) if not name.startswith("cuda")})
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in names))
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(command, check=True)
    return folder
