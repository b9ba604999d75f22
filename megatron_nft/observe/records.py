"""A run's .jsonl files: opened and written line by line by `observe.report`; read back by a run that goes on, by the
page of several runs, by a replay."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_nft.config import Config, RecipeError, to_toml
from megatron_nft.observe.whole_file import replace_text
from megatron_nft.types import StepReport


class Lines:
    """A .jsonl that records are appended to, a line each; none is ever written in part and then again.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._waiting = path, b""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def append(self, record: Mapping[str, object]) -> str:
        """One ASCII line, written when this returns, but for what the disk has no room for: that is written before the
        next. Why, or ""."""
        self._waiting += (json.dumps(record, allow_nan=False) + "\n").encode("ascii")
        return self._write()

    def _write(self) -> str:
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Nothing can be appended afterwards."""
        self._write()
        os.close(self._file)


def record_line(step: int, kind: str, metrics: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """One of metrics.jsonl."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {"step": step, "kind": kind, "time": now, **finite, **more}


def plain_number(value: float) -> float:
    """A plain int or float out of Python's, numpy's or torch's."""
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a run's .jsonl, less one that was cut short by the end of an attempt."""
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def keep_records(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Takes the other records out of a run's .jsonl; the file is whole at any time."""
    replace_text(path, "".join(json.dumps(record) + "\n" for record in read_records(path) if wanted(record)))


def read_step_reports(path: Path) -> list[StepReport]:
    """All records of a run's metrics.jsonl."""
    return [
        StepReport(
            step=record["step"],
            kind=record["kind"],
            time=record["time"],
            metrics={name: math.nan if value is None else value for name, value in record.items() if "/" in name},
            groups_by_correct_rate=tuple(record.get("groups_by_correct_rate", ())),
            benchmarks=record.get("benchmarks", {}),
        )
        for record in read_records(path)
    ]


def open_folder(config: Config) -> tuple[Lines, Lines]:
    """Writes recipe.toml, and opens metrics.jsonl and rollouts.jsonl for appending."""
    folder = config.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "recipe.toml", to_toml(config))
        return open_for_appending(folder)
    except OSError as error:
        raise RecipeError(
            f"can't write to the run folder {folder}: {error}; set run.dir to a writable folder"
        ) from None


def open_for_appending(folder: Path) -> tuple[Lines, Lines]:
    """Its metrics.jsonl and rollouts.jsonl."""
    return Lines(folder / "metrics.jsonl"), Lines(folder / "rollouts.jsonl")
