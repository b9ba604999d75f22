"""When a process was at which verb, and how much memory that took: noted inside it, fetched once a step.

`UsageLog` runs in each rank's and engine's process (cluster/processes.py); `fetch` asks them all from the driver. A
process that doesn't answer is left out: whether it lives is for others to find out.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

GIB = 1 << 30
ANSWER_S = 5.0
"""That a process has to say it: by then it is idle, or between two calls of an engine."""
TOGETHER_S = 0.1
"""Calls of one verb that follow each other so closely are one span: an engine's come every 50 ms."""
MOST_SPANS = 2_000
MOST_ASKED = 256
"""Of ranks, and of engines: a call costs the driver up to 1 ms, and they are alike."""


@dataclass
class Usage:
    """Of one process since it was last asked."""

    spans: list[tuple[str, float, float]] = field(default_factory=list)  # verb, from, to, in time of day
    host_gib: dict[str, float] = field(default_factory=dict)  # verb -> peak, children included
    gpu_gib: dict[str, float] = field(default_factory=dict)  # verb -> peak of torch's allocations
    device: str = ""  # the GPU's name; empty: none
    more: dict[str, Any] = field(default_factory=dict)  # of an engine: its decode steps


class UsageLog:
    """Notes verbs. Used by one thread at a time."""

    def __init__(self) -> None:
        self._spans: deque[tuple[str, float, float]] = deque(maxlen=MOST_SPANS)
        self._verb = ""  # whose peaks are being counted
        self._host: dict[str, float] = {}
        self._gpu: dict[str, float] = {}

    @contextmanager
    def during(self, verb: str) -> Iterator[None]:
        """The block is this verb's."""
        if verb != self._verb:
            self._note_peaks()
            _begin_peaks()
            self._verb = verb
        start = time.time()
        try:
            yield
        finally:
            end = time.time()
            if self._spans and self._spans[-1][0] == verb and start - self._spans[-1][2] < TOGETHER_S:
                start = self._spans.pop()[1]
            self._spans.append((verb, start, end))

    def take(self) -> Usage:
        """All since the last call."""
        self._note_peaks()
        cuda, self._verb = _cuda(), ""
        usage = Usage(list(self._spans), self._host, self._gpu, cuda.get_device_name() if cuda is not None else "")
        self._spans.clear()
        self._host, self._gpu = {}, {}
        return usage

    def _note_peaks(self) -> None:
        if verb := self._verb:
            self._host[verb] = max(self._host.get(verb, 0.0), host_peak_bytes() / GIB)
            if (cuda := _cuda()) is not None:
                self._gpu[verb] = max(self._gpu.get(verb, 0.0), cuda.max_memory_allocated() / GIB)


def fetch(processes: Mapping[str, Any]) -> dict[str, Usage]:
    """By name, of Ray actors with a method `usage`; without those that don't answer, and of very many every so many."""
    asked = list(processes)[:: -(-len(processes) // MOST_ASKED) or 1]
    refs = {processes[name].usage.remote(): name for name in asked}
    if not refs:  # all are being started
        return {}
    answered, _ = ray.wait(list(refs), num_returns=len(refs), timeout=ANSWER_S)
    found = {}
    for ref in answered:
        try:
            usage = ray.get(ref)
        except Exception:  # it died, or an engine's worker did
            continue
        if usage is not None:  # as the benchmarks' played processes answer
            found[refs[ref]] = usage
    return found


def host_peak_bytes() -> int:
    """Largest resident memory of this process and its children since `_begin_peaks`."""
    return sum(_peak_of(folder) for folder in _own_folders())


def host_now_bytes() -> int:
    """Resident memory of this process, without its children."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _begin_peaks() -> None:
    """From here on peaks are counted anew. Where the kernel forbids it they are those since the processes began."""
    for folder in _own_folders():
        try:
            (folder / "clear_refs").write_text("5")
        except OSError:
            continue
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()


def _own_folders() -> list[Path]:
    """In /proc: of this process, and of its children, such as an engine's workers."""
    own = Path("/proc/self")
    try:
        children = [word for task in (own / "task").iterdir() for word in (task / "children").read_text().split()]
    except OSError:
        children = []
    return [own, *(Path("/proc", child) for child in children)]


def _peak_of(folder: Path) -> int:
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _cuda() -> Any:
    """torch.cuda, where it is at work."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
