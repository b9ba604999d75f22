"""The packages of requirements-gpu.txt stand side by side, and their libraries load against the torch that is there."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from megatron_nft.doctor.packages import pins
from tests.contract.libcuda import extension_modules, make_stub

IMPORTABLE = {
    "_C_stable_libtorch", "_moe_C_stable_libtorch", "cumem_allocator", "_vllm_fa2_C", "_vllm_fa3_C", "_flashmla_C",
}  # fmt: skip
"""What vLLM imports on an H100 for models of these families, and to fall asleep; the others are other devices' or
other layers'."""
LOAD = """
import ctypes, json, sys, torch
found = {}
for path in sys.argv[1:]:
    try:
        ctypes.CDLL(path)
    except OSError as error:
        found[path] = str(error)
print(json.dumps(found))
"""


def test_pip_finds_nothing_broken():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout


def test_every_pin_is_what_is_installed():
    pinned = dict(pins(Path("requirements-gpu.txt"), sys.version_info[:2]))
    assert len(pinned) > 15 and {"torch", "vllm", "transformer-engine", "megatron-core"} <= pinned.keys()
    assert {name: version(name).partition("+")[0] for name in pinned} == pinned
    assert version("transformer-engine-torch") == version("transformer-engine-cu13") == pinned["transformer-engine"]


def test_transformer_engines_libraries_load():
    """Megatron takes its layers from it wherever it imports."""
    code = "import torch, transformer_engine.pytorch as te, transformer_engine_torch as c; print(te.Linear, c.DType)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "Linear" in done.stdout, done.stderr[-2000:]


def test_vllms_extension_modules_load(tmp_path):
    """Of this torch: a symbol that isn't there would be found out at a first request on a GPU."""
    modules = [path for path in extension_modules() if path.name.partition(".")[0] in IMPORTABLE]
    assert {path.name.partition(".")[0] for path in modules} == IMPORTABLE
    environment = os.environ | {"LD_LIBRARY_PATH": str(make_stub(tmp_path))}
    command = [sys.executable, "-c", LOAD, *map(str, modules)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "{}", done.stdout + done.stderr[-2000:]
    smallest = min(modules, key=lambda path: path.stat().st_size)  # the allocator, which is all driver
    without = subprocess.run([*command[:3], str(smallest)], capture_output=True, text=True, timeout=200)
    assert "libcuda.so.1" in without.stdout, "this machine has a driver: then the stub proves nothing"
