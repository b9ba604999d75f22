"""Figures of a quarter of an hour on a GPU, written as they come: a line of JSON each, and a table for people.

The parts (tests/gpu/prove/*.py, each a process of its own) call `figure`. tests/gpu/prove.sh has this module say on
what machine it is (`python -m tests.gpu.prove.report FOLDER`), and after a part whether it ended well, with the table
written anew (`... FOLDER PART STATUS SECONDS LIMIT`).
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LINES, TABLE = "results.jsonl", "results.md"
STATES = {0: "ok", 124: "RAN PAST ITS LIMIT", 137: "RAN PAST ITS LIMIT", 75: "NOT RUN, no time was left"}


def is_dry() -> bool:
    """On a CPU, at sizes that say nothing: that the parts run is what is shown."""
    return os.environ.get("PROVE_DRY") == "1"


def folder() -> Path:
    return Path(os.environ.get("PROVE_OUT", "."))


def figure(what: str, value: float | str, unit: str = "", note: str = "") -> None:
    """One result of this part, on the disk when this returns."""
    record = {"part": os.environ.get("PROVE_PART", "?"), "what": what, "value": value, "unit": unit, "note": note}
    _append(folder(), record | {"is_figure": not is_dry()})
    print(f"  {what}: {_shown(value)} {unit} {note}".rstrip(), flush=True)


def end_part(out: Path, part: str, status: int, seconds: float, limit: float) -> None:
    """The part's own line, and the table with all that there is."""
    state = STATES.get(status, f"FAILED with exit status {status}")
    _append(out, {"part": part, "state": state, "seconds": seconds, "limit": limit})
    (out / TABLE).write_text(table(out))


def machine() -> dict[str, str]:
    """What the figures are of."""
    import torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = [f"{name} {_version(name)}" for name in ("torch", "megatron-core", "transformer-engine-torch")]
    on_gpu = torch.cuda.is_available() and not is_dry()
    what = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if on_gpu else "a CPU"
    return {"machine": what, "versions": ", ".join(versions), "commit": commit,
            "time": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def table(out: Path) -> str:
    """Markdown: a row a figure, a part after the other."""
    records = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    dry = "**A dry run: no row is a figure.**\n\n" if any(r.get("is_figure") is False for r in records) else ""
    head = "".join(
        f"{r['machine']}; {r['versions']}; {r['commit']}, {r['time']}\n\n" for r in records if "machine" in r
    )
    lines = [f"{head}{dry}| part | what | | note |", "| --- | --- | --- | --- |"]
    for record in records:
        if "machine" in record:
            continue
        if "state" in record:
            shown = f"{record['seconds']:.0f} s of {record['limit']:.0f}"
            lines.append(f"| **{record['part']}** | **{record['state']}** | {shown} | |")
        else:
            value = f"{_shown(record['value'])} {record['unit']}".rstrip()
            cells = (record["part"], record["what"], value, record["note"])
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _append(out: Path, record: dict[str, Any]) -> None:
    with (out / LINES).open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def main(where: str, *ended: str) -> None:
    """The command line."""
    if not ended:
        _append(Path(where), machine())
        return
    part, status, seconds, limit = ended
    end_part(Path(where), part, int(status), float(seconds), float(limit))


if __name__ == "__main__":
    main(*sys.argv[1:])
