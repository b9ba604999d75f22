"""Whose a folder is: one process at a time writes into it, on whatever file system, and on whichever node it is.

`Owner.take` comes before anything is written (run/folder.py for a run's folder, evaluation/samples.py for an
evaluation's), `leave` at the end. There is no flock: many shared file systems have none, or one that holds on a node
only. Instead every owner has a number of its own:

    .owner/7    a JSON of who it is; its time of change is when it was last heard of. None at all: it has left.

The highest number owns. A new owner links 8 once that of 7 has left or is dead; a link to a name is made by one process
only, everywhere, and no number is used twice. Who is dead: on the same machine, who has no process any more; of the
same Slurm job, whoever was there before its requeue; on another machine, who has not been heard of for DEAD_S, by the
file system's clock. An owner that was taken for dead and isn't finds the higher number, and writes no more.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from megatron_nft.config import RecipeError

FOLDER = ".owner"
BEAT_S = 10.0
"""An owner says as often that it lives."""
DEAD_S = 120.0
"""One on another machine that has not for so long is dead. Longer than a file system's pause."""
LOOK_S = 0.5
ATTEMPTS = 100
"""At a number; each that fails has made another process the owner."""
LEFT = 0.0
UNKNOWN, OVER = "", "over"
"""In place of when a process started: it can't be looked at; it has ended, and nobody has asked how."""


class FolderInUse(RecipeError):
    """Another process writes there."""


class OwnerLost(RuntimeError):
    """Another process has taken the folder over."""


@dataclass(frozen=True, kw_only=True)
class Who:
    """A process, told apart from all others of all machines."""

    token: str
    host: str
    machine: str  # boot and space of process ids: two containers of a node see each other's processes no more
    pid: int
    started: str  # of the process, in the kernel's ticks: a process id is used again
    since: str
    command: str
    job: str = ""  # Slurm's, with its cluster
    restart: int = 0  # times that Slurm has requeued it

    @classmethod
    def me(cls) -> "Who":
        job, cluster = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_CLUSTER_NAME", "")
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            command=" ".join(sys.argv)[:200],
            job=f"{job}@{cluster}" if job and cluster else job,
            restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.job.partition('@')[0]}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}: {self.command}"

    def is_here(self) -> bool:
        """On this machine, where its process can be looked at."""
        return self.machine == _machine()

    def lives_here(self) -> bool:
        """For one that is here."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            pass
        return _started(self.pid) in (UNKNOWN, self.started)

    def was_requeued(self, now: "Who") -> bool:
        """`now` is the same Slurm job after a later requeue, before which Slurm has ended all of the job."""
        return bool(self.job) and self.job == now.job and self.restart < now.restart


class Owner:
    """This process's hold on a folder.

    Args:
        number: that it has got.
    """

    def __init__(self, folder: Path, number: int, who: Who) -> None:
        self._names, self._number, self._who = folder / FOLDER, number, who
        self._folder, self._ended = folder, threading.Event()
        self._heir: Who | None = None
        self._thread = threading.Thread(target=self._live, name="owner of the folder", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, folder: Path, announce: Callable[[str], None] = lambda line: None) -> "Owner":
        """Makes this process the folder's owner; the folder is made if it isn't there.

        Raises:
            FolderInUse: another process is, and lives.
            RecipeError: the folder can't be written.
        """
        who = Who.me()
        try:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            mine = folder / FOLDER / f"{who.token}.new"
            try:
                for _ in range(ATTEMPTS):
                    highest = _highest(folder / FOLDER)
                    if highest:
                        _wait_for_end(folder, highest, who, mine, announce)
                    if _link(mine, folder / FOLDER / str(highest + 1), who):
                        if _highest(folder / FOLDER) == highest + 1:  # else somebody was two ahead
                            _forget_below(folder / FOLDER, highest + 1)
                            return cls(folder, highest + 1, who)
                        (folder / FOLDER / str(highest + 1)).unlink(missing_ok=True)
            finally:
                mine.unlink(missing_ok=True)
        except OSError as error:
            raise RecipeError(
                f"can't write to the folder {folder}: {error}; give one that this user may write to (run.dir, --out)"
            ) from None
        raise FolderInUse(f"{folder} changes its owner again and again; see {folder / FOLDER}")

    def __enter__(self) -> "Owner":
        return self

    def __exit__(self, *_) -> None:
        self.leave()

    def check(self) -> None:
        """To be called before anything is written that would take another's place.

        Raises:
            OwnerLost: this process was taken for dead, by one that owns the folder now.
        """
        self._look()
        if self._heir is not None:
            raise OwnerLost(
                f"{self._folder} has been taken over by {self._heir}: this process was not heard of for "
                f"{DEAD_S:g} s, or its job was requeued; it ends, and writes nothing more there"
            )

    def leave(self) -> None:
        """Ends the hold. Whoever comes next need not wait. Needs no room on the disk."""
        self._ended.set()
        self._thread.join(BEAT_S)
        if self._heir is None:
            with suppress(OSError):
                os.utime(self._names / str(self._number), (LEFT, LEFT))

    def _live(self) -> None:
        while not self._ended.wait(BEAT_S) and self._heir is None:
            self._look()

    def _look(self) -> None:
        """Says that this process lives, unless there is another owner. Trouble with the disk is no end."""
        mine = self._names / str(self._number)
        with suppress(OSError):
            if (highest := _highest(self._names)) > self._number:
                self._heir = _who_is(self._names / str(highest)) or _somebody()
            elif highest < self._number:  # somebody has tidied up
                self._names.mkdir(parents=True, exist_ok=True)
                temporary = self._names / f"{self._who.token}.new"
                _link(temporary, mine, self._who)
                temporary.unlink(missing_ok=True)
            else:
                os.utime(mine)


def _wait_for_end(folder: Path, number: int, me: Who, mine: Path, announce: Callable[[str], None]) -> None:
    """Returns once the owner of that number has left or is known to be dead, and says so; at once on this machine.

    Raises:
        FolderInUse: it lives.
    """
    path, first, told = folder / FOLDER / str(number), None, False
    while True:
        heard = _heard(path)
        if heard in (None, LEFT):  # gone: there is a higher one, which the next look finds
            return
        who = _who_is(path) or _somebody()
        if who.was_requeued(me):
            return announce(f"{folder} is taken over from this job's attempt {who.restart}, which has ended: {who}")
        if who.is_here():
            if who.lives_here():
                raise FolderInUse(_in_use(folder, who))
            return announce(f"{folder} is taken over from a process that has ended: {who}")
        _write(mine, me)
        silent_s = mine.stat().st_mtime - heard  # both by the file system's clock
        if silent_s > DEAD_S:
            return announce(f"{folder} is taken over from {who}; not heard of for {silent_s:.0f} s, it is dead")
        if first is not None and heard != first:
            raise FolderInUse(_in_use(folder, who))
        if not told:
            told, first = True, heard
            announce(
                f"{folder} has an owner on another machine, {who}, heard of {max(silent_s, 0.0):.0f} s ago; looking "
                f"whether it lives (at most {DEAD_S:g} s) ..."
            )
        time.sleep(LOOK_S)


def _in_use(folder: Path, who: Who) -> str:
    return (
        f"{folder} is in use by {who}; wait for its end, or end it (kill {who.pid} there"
        f"{', or scancel ' + who.job.partition('@')[0] if who.job else ''}), or give another folder (run.name, --out)"
    )


def _link(mine: Path, path: Path, who: Who) -> bool:
    """Makes a name that isn't there, with its whole content; whether it was this process that did."""
    _write(mine, who)
    try:
        os.link(mine, path)
        return True
    except FileExistsError:
        pass  # or a network has repeated the question, and its first answer is lost
    except OSError:  # a file system without links
        with suppress(FileExistsError), path.open("x") as file:
            file.write(mine.read_text())
    there = _who_is(path)
    return there is not None and there.token == who.token


def _write(path: Path, who: Who) -> None:
    path.write_text(json.dumps(asdict(who), indent=1) + "\n")


def _who_is(path: Path) -> Who | None:
    """None: what is there was not written to its end, or by another version."""
    try:
        return Who(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _somebody() -> Who:
    """Nothing is known of it but that it was there; only its silence can tell that it is dead."""
    return Who(token="", host="an unknown machine", machine="", pid=0, started="", since="an unknown time", command="?")


def _heard(path: Path) -> float | None:
    """By an opened file, not by what this machine remembers of it."""
    try:
        with path.open() as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def silent_s(folder: Path) -> float | None:
    """Seconds since a folder's owner was heard of, for who only looks; None: it is not known to have one."""
    heard = [path.stat().st_mtime for path in (folder / FOLDER).glob("*") if path.name.isdigit()]
    return max(0.0, time.time() - max(heard)) if heard else None


def _highest(names: Path) -> int:
    return max((int(name) for name in os.listdir(names) if name.isdigit()), default=0)


def _forget_below(names: Path, number: int) -> None:
    """And what processes that were killed on their way to a number have left."""
    now = _heard(names / str(number)) or 0.0
    for path in [names / name for name in os.listdir(names)]:
        is_old = int(path.name) < number if path.name.isdigit() else now - (_heard(path) or now) > DEAD_S
        if is_old:
            with suppress(OSError):  # another user's may stay
                path.unlink()


def _machine() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return socket.gethostname()


def _started(pid: int) -> str:
    with suppress(OSError, IndexError):
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return OVER if state in "ZX" else numbers[18]
    return UNKNOWN
