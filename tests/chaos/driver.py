"""A driver in a process of its own, forked where all is imported, that meets one disturbance at a chosen place.

`Plan` says which; `drive` is the fork's whole life: the command `train` with the pool's processes. A place is a part of
the driver's work (PLACES); the disturbance comes with its n-th beginning, after so many operations on files of the
run's folder, or after so many seconds. It is written down, in memory that outlives the driver, before it happens.
"""

import faulthandler
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from megatron_nft import train
from megatron_nft.observe.owner import Owner
from megatron_nft.observe.report import Report
from megatron_nft.run import checkpoint_folder, command_line
from megatron_nft.run.checkpoints import Checkpoints
from megatron_nft.run.held_out import HeldOutEvaluation
from megatron_nft.run.run import Run, run_recipe
from tests.chaos.pool import RECIPE, PooledActors, join

PLACES: dict[str, list[tuple[Any, str]]] = {
    "start": [(Run, "__init__"), (Report, "__init__"), (Owner, "take")],
    "rollout": [(Run, "take")],
    "train": [(Run, "train_step")],
    "save": [(Checkpoints, "begin")],
    "publish": [(checkpoint_folder, "publish"), (checkpoint_folder, "prune")],
    "sync": [(Run, "_sync")],
    "evaluation": [(HeldOutEvaluation, "evaluate")],
    "stop": [(Run, "save_and_stop"), (Report, "close"), (PooledActors, "save_hf")],
}
DELAY_S = {"start": 2.0, "rollout": 0.3, "train": 0.2, "save": 0.06, "publish": 0.01, "sync": 0.08, "evaluation": 0.15,
           "stop": 0.3}  # fmt: skip
"""At most: about what each takes."""
OPERATIONS = {"start": 15, "save": 8, "publish": 12, "stop": 20}
"""On files, about as many as there are in each; of the others, time decides."""
KINDS = {"SIGKILL": 5, "node": 5, "SIGTERM": 3, "SIGUSR1": 3, "SIGINT": 3, "rank": 2, "engine": 1, "full disk": 2,
         "read-only": 2}  # fmt: skip
"""How often each is drawn. node: driver and rank at the same instant."""
DISK_S = 2.0
"""After which the disk has room again, or can be written."""
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.utime")


@dataclass(frozen=True)
class Plan:
    """What happens, and where: see `draw`."""

    kind: str
    place: str
    nth: int = 1
    operations: int | None = None
    delay_s: float = 0.0


def draw(random: Random, kinds: Sequence[str]) -> Plan:
    """A disturbance at random."""
    kind = random.choices(kinds, [KINDS[kind] for kind in kinds])[0]
    place = random.choice(list(PLACES))
    by_operations = place in OPERATIONS and random.random() < 0.7
    return Plan(
        kind,
        place,
        1 if place in ("start", "stop") else random.randint(1, 2),
        random.randint(1, OPERATIONS[place]) if by_operations else None,
        random.uniform(0, DELAY_S[place]),
    )


class Memory:
    """Of this process and of those that it forks: what has happened to a driver."""

    SIZE = 1 << 16

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, self.SIZE)

    def write(self, record: dict[str, Any]) -> None:
        text = json.dumps(record).encode()
        self._map[: len(text) + 1] = text + b"\0"

    def take(self) -> dict[str, Any] | None:
        """What was written since the last time."""
        text, self._map[:1] = self._map[:].partition(b"\0")[0], b"\0"
        return json.loads(text) if text else None


class Disturbance:
    """Of a driver, from inside."""

    def __init__(self, plan: Plan, folder: Path, memory: Memory) -> None:
        self.plan, self._folder, self._memory = plan, folder, memory
        self._prefix, self._seen, self._operations = str(folder), 0, 0
        self._is_armed = self._has_acted = False
        self.pids: dict[str, int] = {}
        self._main = threading.get_ident()
        self._where: dict[int, list[str]] = defaultdict(list)  # by thread

    def install(self) -> None:
        """Before the driver begins."""
        for place, parts in PLACES.items():
            for owner, name in parts:
                setattr(owner, name, self._watched(place, getattr(owner, name)))
        sys.addaudithook(self._see)

    def _watched(self, place: str, original: Any) -> Any:
        def watched(*arguments: Any, **more: Any) -> Any:
            self._enter(place)
            try:
                return original(*arguments, **more)
            finally:
                self._where[threading.get_ident()].pop()

        return watched

    def _enter(self, place: str) -> None:
        self._where[threading.get_ident()].append(place)
        plan = self.plan
        if plan.place == "stop" and place == "rollout" and plan.nth:
            self.plan = Plan(plan.kind, plan.place, 0, plan.operations, plan.delay_s)
            os.kill(os.getpid(), signal.SIGUSR1)  # its end is what is disturbed
        if place != plan.place or self._is_armed:
            return
        self._seen += 1
        if self._seen >= plan.nth:
            self._is_armed = True
            if plan.operations is None:
                timer = threading.Timer(plan.delay_s, self._act, ["a moment"])
                timer.daemon = True
                timer.start()

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_armed or self._has_acted or self.plan.operations is None or event not in EVENTS:
            return
        if not (isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(self._prefix)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        self._operations += 1
        if self._operations >= self.plan.operations:
            self._act(f"{event} {os.path.relpath(arguments[0], self._prefix)}")

    def _act(self, at: str) -> None:
        if self._has_acted:
            return
        self._has_acted = True
        places = self._where[threading.get_ident()] or self._where[self._main] or ["between"]
        self._memory.write({**asdict(self.plan), "at": at, "where": places[-1]})
        kind = self.plan.kind
        if kind.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, kind))
        elif kind == "node":
            os.kill(self.pids["rank"], signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in ("rank", "engine"):
            with suppress(ProcessLookupError):
                os.kill(self.pids[kind], signal.SIGKILL)
        else:
            disk = Disk(self._folder.parent)
            disk.fill() if kind == "full disk" else disk.lock(self._folder)
            mended = threading.Timer(DISK_S, disk.mend)
            mended.daemon = True
            mended.start()


class Disk:
    """A small file system of its own, for the folders of the runs."""

    BYTES = 200 << 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self) -> bool:
        """False: this user may not."""
        self._folder.mkdir(exist_ok=True)
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self.BYTES}", "chaos", self._folder], capture_output=True
        )
        return made.returncode == 0

    def fill(self) -> None:
        """To the last byte."""
        with (self._folder / "filler").open("wb") as file, suppress(OSError):
            while free := os.statvfs(self._folder).f_bavail * os.statvfs(self._folder).f_bsize:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)

    def lock(self, folder: Path) -> None:
        """What is opened, made, renamed or deleted in the folder from here on is refused."""
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    def mend(self) -> None:
        """Room again, and all can be written."""
        (self._folder / "filler").unlink(missing_ok=True)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for folder in [name for name in mounts if name.startswith(f"{self._folder}/")]:
            subprocess.run(["umount", "-l", folder], capture_output=True)  # the driver mends it at the same time

    def remove(self) -> None:
        subprocess.run(["umount", "-l", self._folder], check=True)


def drive(address: str, folder: Path, settings: Sequence[str], plan: Plan | None, memory: Memory, log: Path) -> int:
    """A driver, forked from here; its process's number."""
    if (pid := os.fork()) != 0:
        return pid
    status = 1
    try:
        os.setsid()
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.register(signal.SIGUSR2, sys.stderr, all_threads=True)
        print(f"=== {time.strftime('%T')} driver {os.getpid()}: {plan}", flush=True)
        disturbance = plan and Disturbance(plan, folder, memory)

        def run(config: Any, steps: Any, **more: Any) -> None:
            processes = join(address, config)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's, which a driver at this place hasn't met yet
            pids = {"rank": processes.actors.pid(), "engine": processes.engines.pid()}
            if disturbance:
                disturbance.pids = pids
                disturbance.install()
            run_recipe(config, steps, processes=processes, **more)

        command_line.run_recipe = run
        status = train.main(
            [RECIPE, f"run.dir={folder.parent}", f"run.name={folder.name}", "rollout.engines=1", *settings]
        )
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
