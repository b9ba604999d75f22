"""What a driver spends, stage by stage: seconds of its processors and of the clock on the wall, messages, bytes.

A run's report is watched: each of its stages, and what lies between them. Ray's own threads in the driver count;
graders and stand-ins are other processes, and don't.
"""

import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

LOOK_S = 0.1
BETWEEN = "between"
"""The stages."""


@dataclass
class Spent:
    """By one stage of one step."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    simulated_s: float = 0.0  # of the engines' clock
    messages: Counter[str] = field(default_factory=Counter)
    stored_bytes: float = 0.0

    def add(self, before: "Snapshot", after: "Snapshot") -> None:
        """What lies between two looks."""
        self.wall_s += after.wall_s - before.wall_s
        self.cpu_s += after.cpu_s - before.cpu_s
        self.simulated_s += after.clock - before.clock
        self.stored_bytes += after.stored_bytes - before.stored_bytes
        self.messages += after.messages - before.messages


@dataclass(frozen=True)
class Snapshot:
    """A look at all counters."""

    wall_s: float
    cpu_s: float
    clock: float
    stored_bytes: float
    messages: Counter[str]


class Watch:
    """Of one run.

    Args:
        ranks, engines: their hosts (stand_ins.py).

    Attributes:
        steps: by number, then by stage; what comes before the first step is 0's.
        private_bytes, store_bytes: the most that the driver's memory and the object store held.
    """

    def __init__(self, ranks: Any, engines: Any) -> None:
        self._hosts = {"rank": ranks, "engine": engines}
        self.steps: dict[int, dict[str, Spent]] = {}
        self._step = 0
        self.private_bytes = self.store_bytes = 0.0
        self._ended = threading.Event()
        self._last = self._look()
        self._thread = threading.Thread(target=self._look_at_memory, daemon=True)
        self._thread.start()

    def report(self, report: Any) -> None:
        """Watches a run's report from here on; what came before was the start."""
        self.close("start")
        plain: Callable = report.stage
        plain_step: Callable = report.step

        @contextmanager
        def step(number: int) -> Iterator[None]:
            self.close(BETWEEN)
            self._step = number
            with plain_step(number):
                yield
            self.close(BETWEEN)

        @contextmanager
        def stage(name: str, *arguments: Any, **more: Any) -> Iterator[Any]:
            self.close(BETWEEN)
            try:
                with plain(name, *arguments, **more) as progress:
                    yield progress
            finally:
                self.close(name)

        report.stage, report.step = stage, step

    def close(self, name: str) -> None:
        """What has been spent since the last call belongs to this stage."""
        now = self._look()
        self.steps.setdefault(self._step, {}).setdefault(name, Spent()).add(self._last, now)
        self._last = now

    def end(self) -> None:
        """Ends the look at memory."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> Snapshot:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        counts: dict[str, Mapping[str, float]] = {
            who: ray.get(host.counts.remote()) for who, host in self._hosts.items()
        }
        messages: Counter[str] = Counter()
        for who, of_host in counts.items():
            for verb, number in of_host.items():
                if verb not in ("clock", "busy"):
                    messages[f"{who}.{verb}"] = int(number)
        return Snapshot(
            wall_s=time.perf_counter(),
            cpu_s=usage.ru_utime + usage.ru_stime,
            clock=counts["engine"]["clock"],
            stored_bytes=_store().cumulative_created_bytes,
            messages=messages,
        )

    def _look_at_memory(self) -> None:
        while not self._ended.wait(LOOK_S):
            with open("/proc/self/statm") as statm:
                _, resident, shared, *_ = map(int, statm.read().split())
            self.private_bytes = max(self.private_bytes, (resident - shared) * os.sysconf("SC_PAGE_SIZE"))
            self.store_bytes = max(self.store_bytes, _store().object_store_bytes_used)


def _store() -> Any:
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats
