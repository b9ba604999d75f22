"""A training whose processes are killed at random, and started again by hand where it ends: what became of it.

python -m tests.chaos.disturbed --kills 30 --seed 1 [section.key=value ...]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from tests.e2e.driver import living

RECIPE = "launch/recipes/quickstart.toml"
KINDS: dict[str, Callable[[str], bool]] = {
    "driver": lambda line: "-m megatron_nft.train" in line,
    "actor rank": lambda line: line.startswith("ray::_ActorRank"),
    "engine": lambda line: line.startswith("ray::_EngineProcess"),
    "verdict worker": lambda line: "multiprocessing.forkserver" in line,
    "Ray worker": lambda line: line.startswith("ray::IDLE"),
    "Ray node": lambda line: "/raylet/raylet " in line,
    "Ray head": lambda line: "/gcs/gcs_server " in line,
}
"""By the beginning of a command line."""
ORPHANS_S, AGENTS_S = 45.0, 180.0
"""For a run's own processes, and for Ray's agents (which hold nothing), to end by themselves after their driver."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
STILL_S = 240.0
"""Without a new line of the driver: it hangs."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One process killed."""

    kind: str
    step: int  # the last that had been done
    seconds: float  # into the attempt


@dataclass
class Outcome:
    """Of a disturbed run."""

    run: Path
    kills: list[Kill] = field(default_factory=list)
    attempts: list[tuple[int, str]] = field(default_factory=list)  # exit status, last words
    seconds: float = 0.0

    def records(self) -> list[dict]:
        """Of metrics.jsonl."""
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]


class Hang(AssertionError):
    """A run stands still, or leaves processes behind."""


def disturb(
    folder: Path, overrides: Sequence[str], *, kills: int, seed: int, pause_s: tuple[float, float] = (5.0, 120.0)
) -> Outcome:
    """Runs the quickstart to its end; kills `kills` processes, each of a kind drawn at random, at random times.

    A driver that ends is started again with the same command, as a batch system would.

    Args:
        pause_s: between two kills, at least and at most.

    Raises:
        Hang: the driver says nothing for STILL_S, or processes outlive their driver.
    """
    draw = random.Random(seed)
    outcome, start = Outcome(folder / "quickstart"), time.monotonic()
    while True:
        status, words = _attempt(folder, overrides, outcome, kills, pause_s, draw)
        outcome.attempts.append((status, words))
        outcome.seconds = time.monotonic() - start
        _say(f"attempt {len(outcome.attempts)} ended with {status}: {words}")
        if status == 0:
            return outcome
        if len(outcome.attempts) > kills + 1:
            raise Hang(f"more attempts than kills: {outcome.attempts}")


def _attempt(
    folder: Path,
    overrides: Sequence[str],
    outcome: Outcome,
    kills: int,
    pause_s: tuple[float, float],
    draw: random.Random,
) -> tuple[int, str]:
    mark, log = uuid.uuid4().hex, folder / "driver.log"
    with log.open("a") as file:
        file.write(f"=== attempt {len(outcome.attempts) + 1}\n")
        file.flush()
        begin = file.tell()
        driver = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "megatron_nft.train",
                RECIPE,
                f"run.dir={folder}",
                "run.overwrite=false",
                "rollout.engines=1",
                *overrides,
            ],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "MEGATRON_NFT_TEST_MARK": mark},
        )
    start = time.monotonic()
    while driver.poll() is None:
        until = time.monotonic() + draw.uniform(*pause_s)
        while driver.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
            if time.time() - log.stat().st_mtime > STILL_S:
                raise Hang(f"nothing new in {log} for {STILL_S:g} s; processes: {living(mark)}")
        if driver.poll() is None and len(outcome.kills) < kills and (kind := _kill(mark, driver.pid, draw)):
            kill = Kill(kind=kind, step=_last_step(outcome.run), seconds=time.monotonic() - start)
            outcome.kills.append(kill)
            _say(f"kill {len(outcome.kills)}: {kill.kind}, {kill.seconds:.0f} s into the attempt, step {kill.step}")
    gone = time.monotonic()
    while left := living(mark):
        is_late = time.monotonic() > gone + AGENTS_S
        if is_late or (time.monotonic() > gone + ORPHANS_S and not all(n.startswith(AGENTS) for n in left.values())):
            raise Hang(f"the driver is gone for {time.monotonic() - gone:.0f} s, still there are: {left}")
        time.sleep(0.2)
    said = log.read_text()[begin:].strip().splitlines()
    return driver.returncode, said[-1] if said else ""


def _kill(mark: str, driver: int, draw: random.Random) -> str | None:
    """Kills a process; its kind. Every kind that is there is as likely as any other."""
    there: dict[str, list[int]] = {}
    for pid, line in living(mark).items():
        for kind, is_one in KINDS.items():
            if is_one(line) and (kind != "driver" or pid == driver):
                there.setdefault(kind, []).append(pid)
    kind = draw.choice(sorted(there))
    try:
        os.kill(draw.choice(sorted(there[kind])), signal.SIGKILL)
    except ProcessLookupError:
        return None
    return kind


def _last_step(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    root = Path(mkdtemp(prefix="chaos-"))
    _say(f"in {root}")
    left, seed = arguments.kills, arguments.seed
    while left > 0:
        (folder := root / f"seed_{seed}").mkdir()
        outcome = disturb(folder, arguments.overrides, kills=left, seed=seed)
        kinds = ", ".join(f"{kill.kind} after step {kill.step}" for kill in outcome.kills)
        accuracy = {r["step"]: r["eval/greedy_accuracy"] for r in outcome.records() if r["kind"] == "evaluation"}
        _say(
            f"seed {seed}: {len(outcome.kills)} kills ({kinds}), {len(outcome.attempts)} attempts, "
            f"{outcome.seconds:.0f} s, accuracy {accuracy}"
        )
        left, seed = left - len(outcome.kills), seed + 1


if __name__ == "__main__":
    main()
