"""Trackers: TensorBoard and Weights & Biases, fed beside metrics.jsonl, and kept from doing harm to a run.

`observe.report` hands over every record, and after a rewind all that are left. Each tracker works in a thread of its
own: one that fails or hangs (no network, a full disk, a stale mount) is given up with a line, and the run goes on. All
of a tracker's data can be made again from metrics.jsonl, and is when the run is resumed.
"""

import importlib
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, Protocol

from megatron_nft.config import Config, RecipeError
from megatron_nft.types import StepReport

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Tracker -> the package that it needs. Its module here is <tracker>_tracker."""

CLOSE_TIMEOUT_S = 90.0  # wandb itself gives up an upload after 60


class Tracker(Protocol):
    """What one kind of tracker does. Any of these may raise anything."""

    def begin(self, records: Sequence[StepReport]) -> str:
        """Starts with a run's records so far, and with no others; says where to look. May come again, with fewer."""

    def add(self, record: StepReport) -> None:
        """One more record; it is on the disk, or handed to another process, when this returns."""

    def close(self) -> None:
        """The run has ended."""


class Trackers:
    """Those of observe.trackers, each in a thread of its own.

    Raises:
        RecipeError: a package is missing, or an account.
    """

    def __init__(self, config: Config) -> None:
        self._threads = [_TrackerThread(name, make_tracker(name, config)) for name in config.observe.trackers]

    def begin(self, records: Sequence[StepReport]) -> None:
        """Makes the trackers hold these records, and no others."""
        for thread in self._threads:
            thread.put("begin", tuple(records))

    def add(self, record: StepReport) -> None:
        """One more record."""
        for thread in self._threads:
            thread.put("add", record)

    def take_messages(self) -> list[str]:
        """What the trackers have to say since the last call."""
        return [thread.messages.get() for thread in self._threads for _ in range(thread.messages.qsize())]

    def close(self) -> None:
        """Waits until everything is written, but not for ever."""
        for thread in self._threads:
            thread.put("close")
        for thread in self._threads:
            thread.finish(CLOSE_TIMEOUT_S)


def check_trackers(config: Config) -> None:
    """Raises RecipeError if a tracker's package or account is missing. Writes nothing."""
    for name in config.observe.trackers:
        make_tracker(name, config)


def tracked_values(record: StepReport) -> dict[str, float]:
    """Name -> value: the record's metrics, and of several benchmarks each one's as eval/.../<benchmark>."""
    parts = record.benchmarks if len(record.benchmarks) > 1 else {}
    return record.metrics | {f"{name}/{part}": value for part, its in parts.items() for name, value in its.items()}


def make_tracker(name: str, config: Config) -> Tracker:
    """A tracker that has not begun; says what is missing before a run starts. Raises RecipeError."""
    try:
        importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise RecipeError(
            f'observe.trackers names "{name}", and its package can\'t be imported ({error}); '
            "pip install -r requirements-trackers.txt, or take it out"
        ) from None
    return importlib.import_module(f"megatron_nft.observe.{name}_tracker").make(config)


class _TrackerThread:
    """Feeds one tracker, in order, until it fails."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.messages = name, SimpleQueue()
        self._tracker = tracker
        self._queue: SimpleQueue[tuple[str, tuple[Any, ...]]] = SimpleQueue()
        # A daemon: the program can end while a tracker hangs.
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def put(self, verb: str, *arguments: Any) -> None:
        if self._thread.ident is None:
            if verb == "close":
                return
            self._thread.start()
            if verb != "begin":
                self._queue.put(("begin", ((),)))
        if self._thread.is_alive():
            self._queue.put((verb, arguments))

    def finish(self, timeout_s: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.messages.put(f"{self.name}: has not finished within {timeout_s:.0f} s; metrics.jsonl has everything")

    def _work(self) -> None:
        verb = ""
        while verb != "close":
            verb, arguments = self._queue.get()
            try:
                said = getattr(self._tracker, verb)(*arguments)
            except BaseException as error:  # whatever it is, it is no reason to lose a run
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self.messages.put(
                    f"{self.name}: given up, the run goes on without it ({reason}); metrics.jsonl has everything"
                )
                return
            if said:
                self.messages.put(f"{self.name}: {said}")
