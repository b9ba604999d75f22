"""A recipe's data files: read by a process of its own, while the other checks go on. Called by recipe.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_nft.data.files import is_hub_name
from megatron_nft.doctor.findings import Finding, fail, ok, warn
from megatron_nft.doctor.machine import Machine

if TYPE_CHECKING:
    from megatron_nft.config import DataConfig

TIMEOUT_S = 60


class DataCheck:
    """Starts reading when made; `findings` waits for what it found. Names on the hub are not read.

    Args:
        model: folder of the tokenizer.
    """

    def __init__(self, data: "DataConfig", model: Path) -> None:
        self._names = list(dict.fromkeys([*data.train, *data.held_out]))
        self._files = [name for name in self._names if os.access(name, os.R_OK) and Path(name).is_file()]
        command = [sys.executable, "-m", "megatron_nft.data.check", "--json", f"--model={model}"]
        command += [f"--max-prompt-tokens={data.max_prompt_tokens}"]
        command += ["--skip-missing"] if data.missing_answer == "skip" else []
        command += [f"--held-out={name}" for name in data.held_out]
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
    looked = "rows" if report["is_whole"] else "rows looked at, there are more"
    words = [f"{report['file']}: {report['rows']} {looked}"]
    if report["without_answer"]:
        words.append(f"{report['without_answer']} without a ground truth")
    if report["too_long"]:
        of = "" if report["measured"] == report["rows"] else f" of the first {report['measured']}"
        words.append(f"{report['too_long']}{of} too long")
    return ", ".join(words)


def _absent(machine: Machine, name: str) -> Iterator[Finding]:
    """What is no file that can be read."""
    file = Path(name)
    if file.is_dir():
        yield fail("data", name, "it is a folder", "name the files in it")
    elif file.exists():
        yield fail("data", name, "this user may not read it", f"chmod +r {name}, or ask its owner")
    elif not is_hub_name(name):
        yield fail("data", name, "no such file", "give the path of a parquet or jsonl file, or owner/name on the hub")
    elif machine.environment.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false"):
        yield fail("data", name, "it is a name on the hub, and HF_HUB_OFFLINE is set", "download it, and give the file")
    else:
        reason = "a name on the hub: it is downloaded at the start, by every machine"
        yield warn("data", name, reason, "download it once, and give the file")
