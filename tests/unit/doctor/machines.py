"""What the tests of the doctor share: a distribution as pip leaves it, and what is wrong with a machine, in short."""

from dataclasses import replace
from pathlib import Path

from megatron_nft.doctor.__main__ import examine
from megatron_nft.doctor.machine import Machine
from megatron_nft.doctor.recipe import check_recipe


def install(site: Path, name: str, version: str, *folders: str) -> None:
    """A distribution as pip leaves it: metadata, and the folders of its packages."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for folder in folders:
        (site / folder).mkdir(parents=True, exist_ok=True)


def driver(machine: Machine, version: str) -> None:
    text = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\nGCC version: 13.2\n"
    (machine.proc / "driver/nvidia/version").write_text(text)


def complaints(machine: Machine) -> dict[str, str]:
    """check -> "status value" of every finding that is not ok."""
    return {f.check: f"{f.status} {f.value}" for f in examine(replace(machine)) if f.status != "ok"}


def troubles(machine, recipe, *overrides):
    return {
        f.check: f"{f.value}: {f.reason}" for f in check_recipe(machine, str(recipe), overrides) if f.status != "ok"
    }
