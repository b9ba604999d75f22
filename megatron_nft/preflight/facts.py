"""What one node says about itself before a run. Called in a process on every node, and compared by checks.py."""

import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_nft.config import load_config, to_toml
from megatron_nft.doctor.__main__ import examine
from megatron_nft.doctor.findings import Finding
from megatron_nft.doctor.machine import REPOSITORY, Machine
from megatron_nft.doctor.packages import pins
from megatron_nft.verdict.boxes import last_boxed
from megatron_nft.verdict.judge import KNOWN_ANSWERS
from megatron_nft.verdict.math_answer import judge_math

HEAD_BYTES = 1 << 20
"""Read of every file of model and data: that it is the same everywhere, and comes in reasonable time."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Plain values: they travel."""

    hostname: str
    seconds: float  # that it took to find all this
    findings: list[Finding]  # doctor's
    versions: dict[str, str]  # of python, this program's source, and the pinned packages
    files: dict[str, str]  # what the recipe reads -> its size and a digest of its beginning
    verdict: str  # what is wrong with grading; "" if nothing
    num_gpus: int
    free_memory: int | None  # bytes
    free_disk: int  # bytes, where temporary files go


def gather_facts(recipe: str, overrides: Sequence[str]) -> Facts:
    """All of it; what is broken becomes a finding or an empty value, not an error."""
    start, machine = time.monotonic(), Machine.this_one()
    findings = examine(machine, recipe, overrides, starts_ray=False)
    files: dict[str, str] = {}
    versions = _versions(machine)
    if not any(finding.check == "recipe" and finding.status == "FAIL" for finding in findings):
        config = load_config(recipe, overrides)
        versions["recipe"] = _digest(to_toml(config).encode())
        named = [*sorted(Path(config.model.path).glob("*")), *map(Path, [*config.data.train, *config.data.held_out])]
        files = {str(path): _head(path) for path in named if not path.is_dir()}
    return Facts(
        hostname=socket.gethostname(),
        findings=findings,
        versions=versions,
        files=files,
        verdict=_verdict_self_test(),
        num_gpus=machine.num_gpus,
        free_memory=machine.free_memory,
        free_disk=shutil.disk_usage(tempfile.gettempdir()).free,
        seconds=time.monotonic() - start,
    )


def _versions(machine: Machine) -> dict[str, str]:
    source = hashlib.sha256()
    for path in sorted((REPOSITORY / "megatron_nft").rglob("*.py")):
        source.update(path.read_bytes())
    versions = {"python": ".".join(map(str, machine.python)), "megatron_nft's source": source.hexdigest()[:12]}
    names = {name for file in machine.requirements for name, _ in pins(file, machine.python)}
    for name in sorted(names & machine.installed.keys()):
        versions[name] = " and ".join(machine.installed[name])
    if machine.driver:
        versions["NVIDIA driver"] = ".".join(map(str, machine.driver))
    return versions


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"{os.fstat(file.fileno()).st_size} bytes, {_digest(file.read(HEAD_BYTES))}"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _verdict_self_test() -> str:
    try:
        for answer, gold, expected in KNOWN_ANSWERS:
            verdict = judge_math(last_boxed(answer), gold)
            if verdict.kind != expected:
                return f"{answer!r} against {gold!r} should be {expected!r} but is {verdict.kind!r} ({verdict.detail})"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
