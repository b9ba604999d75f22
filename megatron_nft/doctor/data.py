"""A recipe's data files: read by a process of its own, while the other checks go on. Called by recipe.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from megatron_nft.doctor.findings import Finding, fail, ok, warn
from megatron_nft.doctor.machine import Machine

HUB_NAME_PARTS = 2
"""owner/name."""
TIMEOUT_S = 60


class DataCheck:
    """Starts reading when made; `findings` waits for what it found.

    Args:
        names: files, and names on the hub, which are not read.
        skips_missing: rows without a ground truth are left out, not refused.
    """

    def __init__(self, names: Sequence[str], skips_missing: bool) -> None:
        self._names = list(dict.fromkeys(names))
        self._files = [name for name in self._names if os.access(name, os.R_OK) and Path(name).is_file()]
        command = [sys.executable, "-m", "megatron_nft.data.check", "--json", *["--skip-missing"] * skips_missing]
        self._reader = None
        if self._files:
            self._reader = subprocess.Popen(
                [*command, "--", *self._files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

    def findings(self, machine: Machine) -> Iterator[Finding]:
        """A row a file."""
        reports, error = self._read()
        for name in self._names:
            if name not in self._files:
                yield from _absent(machine, name)
            elif name not in reports:
                yield fail("data", name, f"it can't be looked at: {error}", "install the requirements first")
            elif reports[name]["error"]:
                yield fail("data", name, reports[name]["error"], "mend the file, or name another")
            else:
                yield ok("data", _words(reports[name]))

    def _read(self) -> tuple[dict[str, dict], str]:
        if self._reader is None:
            return {}, ""
        try:
            out, said = self._reader.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._reader.kill()
            self._reader.communicate()
            return {}, f"not read within {TIMEOUT_S} s"
        with suppress(ValueError):
            return {report["file"]: report for report in json.loads(out)}, ""
        return {}, (said.strip().splitlines() or ["its reader said nothing"])[-1]


def _words(report: dict) -> str:
    without = f", {report['without_answer']} without a ground truth" if report["without_answer"] else ""
    looked = "rows" if report["is_whole"] else "rows looked at, there are more"
    return f"{report['file']}: {report['rows']} {looked}{without}"


def _absent(machine: Machine, name: str) -> Iterator[Finding]:
    """What is no file that can be read."""
    file = Path(name)
    if file.is_dir():
        yield fail("data", name, "it is a folder", "name the files in it")
    elif file.exists():
        yield fail("data", name, "this user may not read it", f"chmod +r {name}, or ask its owner")
    elif file.suffix or name.count("/") + 1 != HUB_NAME_PARTS:
        yield fail("data", name, "no such file", "give the path of a parquet or jsonl file, or owner/name on the hub")
    elif machine.environment.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false"):
        yield fail("data", name, "it is a name on the hub, and HF_HUB_OFFLINE is set", "download it, and give the file")
    else:
        reason = "a name on the hub: it is downloaded at the start, by every machine"
        yield warn("data", name, reason, "download it once, and give the file")
