"""A run's folder: can it be written to, and has its disk room for all that the run will keep there at once?"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_nft.doctor.findings import Finding, fail, ok
from megatron_nft.doctor.machine import Machine

if TYPE_CHECKING:
    from megatron_nft.config import Config
    from megatron_nft.families.hf_config import HFConfig

GIB = 1 << 30


def check_run_folder(machine: Machine, config: "Config", hf: "HFConfig") -> Iterator[Finding]:
    """What an earlier start of the run has written there counts as room. A quota is not seen. Nothing stays behind."""
    from megatron_nft.plan.disk import plan_disk

    folder = config.run_dir
    place = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    remedy = "set run.dir to a folder that can be written"
    if not place.is_dir():
        yield fail("run folder", str(folder), f"{place} is a file", remedy)
        return
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield fail("run folder", str(folder), f"{place} can't be written: {error.strerror}", remedy)
        return
    plan, free, there = plan_disk(config, hf), machine.disk_usage(place)[2], _bytes_of(folder)
    value = f"{folder}: {_gib(free)} free"
    if free + there < plan.total:
        reason = f"the trained model takes {_gib(plan.model)}"
        if plan.checkpoints:
            reason += (
                f", {plan.checkpoints} checkpoints of {_gib(plan.checkpoint)} at once {_gib(plan.total - plan.model)}"
            )
        if there:
            reason += f"; {_gib(there)} are there"
        remedy = "make room, set run.dir to another disk" + (", or lower checkpoint.keep_last" * bool(plan.checkpoints))
        yield fail("run folder", value, reason, remedy)
    else:
        yield ok("run folder", f"{value}, {_gib(plan.total)} needed at most")


def _bytes_of(folder: Path) -> int:
    """Of checkpoints and the exported model."""
    files = [file for name in ("checkpoints", "hf") for file in (folder / name).rglob("*")]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / (1 << 20):,.1f} MiB"
