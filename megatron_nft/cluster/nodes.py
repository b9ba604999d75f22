"""The nodes of a job's Ray: who has joined, and one function called on each of them.

Called by cluster/placement.py, and by preflight before anything heavy starts.
"""

import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.5


class ClusterError(RuntimeError):
    """The job's nodes haven't got what is needed; or a process died or did not answer in time: the message names the
    verb and the rank."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that has joined."""

    name: str  # as `ray start --node-name` gave it: Slurm's
    ray_id: str
    address: str
    cpus: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a call on a node came to."""

    value: Any = None
    error: str = ""


class Processes:
    """One process on each node, or several; each calls what it is given."""

    def __init__(self, nodes: Sequence[Node], *, gpus: int = 0, environment: dict[str, str] | None = None) -> None:
        """
        Args:
            nodes: where; a node that is named twice has two.
            gpus: of each process.
        """
        self._names = [node.name for node in nodes]
        self._handles = [
            _Caller.options(
                num_cpus=0,
                num_gpus=gpus,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.ray_id, soft=False),
                runtime_env={"env_vars": environment or {}},
            ).remote()
            for node in nodes
        ]

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple], within_s: float) -> list[Answer]:
        """Calls `function` in every process at once, each with its own arguments."""
        refs = [handle.call.remote(function, a) for handle, a in zip(self._handles, arguments, strict=True)]
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=within_s)
        return [_answer(ref) if ref in done else Answer(error=f"no answer within {within_s:.0f} s") for ref in refs]

    def clock_offsets(self) -> list[float]:
        """Seconds that each process's clock is ahead of this one's, give or take half of a call's duration."""
        offsets = []
        for handle in self._handles:
            before = time.time()
            there = ray.get(handle.call.remote(time.time, ()))
            offsets.append(there - (before + time.time()) / 2)
        return offsets

    def end(self) -> None:
        """Ends the processes."""
        for handle in self._handles:
            ray.kill(handle)


@contextmanager
def joined(within_s: float, given_up: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Within the Ray at RAY_ADDRESS, which may yet be starting.

    Args:
        given_up: why it won't start, as far as is known now.

    Raises:
        ConnectionError: there is none, or not within `within_s`.
    """
    if not (address := os.environ.get("RAY_ADDRESS", "")):
        raise ConnectionError("RAY_ADDRESS is not set")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
            ray.init(log_to_driver=False, logging_level="CRITICAL")  # and a node that fails is said by the caller
            break
        except Exception as error:
            if (reason := given_up()) or time.monotonic() > deadline:
                reason = reason or f"none within {within_s:g} s: {error}"
                raise ConnectionError(f"no Ray at RAY_ADDRESS={address}: {reason}") from error
            time.sleep(POLL_S)
    try:
        yield
    finally:
        ray.shutdown()


def living_nodes() -> list[Node]:
    """Those that have joined and answer, by name; n2 comes before n10."""
    nodes = [
        Node(
            name=entry.get("NodeName") or entry["NodeManagerHostname"],
            ray_id=entry["NodeID"],
            address=entry["NodeManagerAddress"],
            cpus=int(entry["Resources"].get("CPU", 0)),
            gpus=int(entry["Resources"].get("GPU", 0)),
        )
        for entry in ray.nodes()
        if entry["Alive"]
    ]
    return sorted(nodes, key=lambda node: _natural(node.name))


def wait_for_nodes(
    names: Sequence[str],
    within_s: float,
    say: Callable[[str], None],
    given_up: Callable[[], Collection[str]] = lambda: (),
) -> list[str]:
    """Polls until all have joined; the names of those that have not within `within_s`.

    Args:
        given_up: names of nodes that will not join, as far as is known now; once no other is missing, the wait ends.
    """
    deadline, said = time.monotonic() + within_s, time.monotonic()
    while True:
        present = {node.name for node in living_nodes()}
        missing = [name for name in names if name not in present]
        if set(missing) <= set(given_up()) or time.monotonic() > deadline:
            return missing
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"{len(names) - len(missing)} of {len(names)} nodes have joined Ray; waiting for {', '.join(missing)}")
        time.sleep(POLL_S)


@ray.remote
class _Caller:
    def call(self, function: Callable[..., Any], arguments: tuple) -> Any:
        return function(*arguments)


def _answer(ref: Any) -> Answer:
    try:
        return Answer(value=ray.get(ref))
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        return Answer(error=f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: digits as numbers."""
    parts, word = [], ""
    for letter in [*name, ""]:
        if word and (not letter or letter.isdigit() != word[-1].isdigit()):
            parts.append((int(word), "") if word.isdigit() else (-1, word))
            word = ""
        word += letter
    return parts
