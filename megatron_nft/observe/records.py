"""A run's .jsonl files, read back: by a run that goes on, by the page of several runs, by a replay."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_nft.observe.html import replace_text
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
