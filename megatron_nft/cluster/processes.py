"""A process of a run, from inside and from the driver: its log, its watchdog, a verb under way, an end that is noticed.

Each process writes RUN/logs/attempt_N/<its name>.log: what it prints, and its threads' stacks when it crashes, when a
verb takes nearly as long as the driver waits for it (the watchdog: a thread of faulthandler's, which needs neither
Python's lock nor Ray), and when somebody sends it SIGUSR2. Used by cluster/ranks.py and cluster/fleet.py.
"""

import faulthandler
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.usage import Usage, UsageLog
from megatron_nft.config import RecipeError

STDOUT, STDERR = 1, 2
DEATH_SEEN_S = 10.0
"""Ray knows of a process's end at once, of a node's later; a living engine may be busy for longer than this."""
WATCHDOG_SHARE = 0.95
"""Of a verb's deadline; then the stacks are written. Before the driver gives up, and kills whoever is late."""


class ProcessLost(ClusterError):
    """A process died, or did not answer in time: the message names the verb and the process. A new one may do."""


class Process:
    """What actor ranks and engines have in common. Runs in their own processes.

    Args:
        log: what the process prints goes there from now on. None: it stays in Ray's own logs.
    """

    def __init__(self, log: Path | None = None) -> None:
        if log is not None:
            _write_to(log)
        faulthandler.enable(STDERR, all_threads=True)
        faulthandler.register(signal.SIGUSR2, STDERR, all_threads=True)
        self.log = UsageLog()

    def ping(self) -> None:
        """Answers, if this process lives."""

    def usage(self) -> Usage:
        """Of this process since the last call."""
        return self.log.take()


@contextmanager
def watchdog(timeout_s: float) -> Iterator[None]:
    """Writes this process's stacks to its log if the block takes WATCHDOG_SHARE of `timeout_s`; it goes on."""
    faulthandler.dump_traceback_later(WATCHDOG_SHARE * timeout_s, file=STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def new_attempt(run_dir: Path) -> Path:
    """An empty folder for the logs of one start of a run: attempt_1, then attempt_2, ... whatever else lies there.

    Raises:
        RecipeError: it can't be made.
    """
    logs = run_dir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        numbers = [path.name.removeprefix("attempt_") for path in logs.glob("attempt_*")]
        number = 1 + max((int(n) for n in numbers if n.isascii() and n.isdigit()), default=0)
        folder = (logs / f"attempt_{number}").resolve()
        folder.mkdir()
    except OSError as error:
        raise RecipeError(
            f"can't write logs to {logs}: {error}; move what is there away, or set run.name to a new name"
        ) from None
    return folder


def log_of(name: str, logs: Path | None) -> Path | None:
    """The log of a process, such as actor_rank_3.log of "actor rank 3"."""
    return logs and logs / f"{name.replace(' ', '_')}.log"


@dataclass(frozen=True)
class Pending:
    """A verb under way on several processes."""

    what: str
    refs: dict[str, Any]  # process name -> Ray's reference
    timeout_s: float
    processes: dict[str, Any]  # process name -> Ray's handle; whose deaths explain an error
    logs: Path | None = None
    begun: float = field(default_factory=time.monotonic)

    def is_done(self) -> bool:
        """Whether every process has answered, or is gone, or all are late: `wait` keeps nobody."""
        _, waiting = ray.wait(list(self.refs.values()), num_returns=len(self.refs), timeout=0)
        return not waiting or self._is_late()

    def _is_late(self) -> bool:
        return time.monotonic() > self.begun + self.timeout_s

    def wait(self) -> list[Any]:
        """What each process returned, in their order.

        Raises:
            ProcessLost: a process died, or the deadline passed; the names of those that did not answer are given.
            Exception: whatever a process raised, with all processes alive.
        """
        names = {ref: name for name, ref in self.refs.items()}
        values: dict[Any, Any] = {}
        waiting, deadline = list(names), time.monotonic() + (0.0 if self._is_late() else self.timeout_s)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=max(deadline - time.monotonic(), 0.0))
            if not done:
                late = [names[ref] for ref in waiting]
                raise ProcessLost(
                    f"{self.what}: no answer from {', '.join(late)} within {self.timeout_s:g} s"
                    f"{self._see('what they were at', late)}"
                )
            if waiting:  # whoever else has answered: one look at a time would be thousands of looks at thousands
                more, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
                done += more
            values |= self._values(done, names)
        return [values[ref] for ref in names]

    def _values(self, done: list[Any], names: dict[Any, str]) -> dict[Any, Any]:
        """What those have returned that have answered."""
        try:
            return dict(zip(done, ray.get(done), strict=True))
        except Exception:
            return {ref: self._value(ref, names[ref]) for ref in done}  # one of them: which?

    def _value(self, ref: Any, name: str) -> Any:
        try:
            return ray.get(ref)
        except RayActorError as error:
            raise self._lost([name], error) from error
        except Exception as error:
            # A death may first be seen as an error of those that were connected with the dead.
            if dead := dead_of(self.processes):
                raise self._lost(dead, error) from error
            raise cause_of(error) from error

    def _lost(self, dead: list[str], error: Exception) -> ProcessLost:
        return ProcessLost(f"{self.what}: {', '.join(dead)} died: {error}{self._see('what they said', dead)}")

    def _see(self, what: str, names: list[str]) -> str:
        if self.logs is None:
            return ""
        return f"\n{what} is in {self.logs}/{{{','.join(log_of(name, self.logs).name for name in names)}}}"


def cause_of(error: Exception) -> Exception:
    """What a process raised there, without its traceback in the message: a refusal is one line. The error that brought
    it here has it all."""
    cause = getattr(error, "cause", None) if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, Exception) else error


def dead_of(processes: dict[str, Any]) -> list[str]:
    """Names of those that have ended. Waits for the others' answers, at most DEATH_SEEN_S."""
    return [name for name, state in _states(processes).items() if state == "dead"]


def lost_of(processes: dict[str, Any]) -> list[str]:
    """Names of those that have ended, or don't answer within DEATH_SEEN_S."""
    return [name for name, state in _states(processes).items() if state != "alive"]


def _states(processes: dict[str, Any]) -> dict[str, str]:
    refs = {name: process.ping.remote() for name, process in processes.items()}
    answered, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=DEATH_SEEN_S)
    return {name: _state(ref) if ref in answered else "silent" for name, ref in refs.items()}


def _state(ref: Any) -> str:
    try:
        ray.get(ref)
    except RayActorError:
        return "dead"
    return "alive"


def _write_to(log: Path) -> None:
    """Standard output and error, those of C libraries included."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (STDOUT, STDERR):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    os.write(STDOUT, f"=== process {os.getpid()} on {socket.gethostname()}, {now}\n".encode())
