"""Many drivers of short runs, each disturbed at a random place: every run goes on, and ends as an undisturbed one.

    python -m tests.chaos.kills --kills 200 --seed 1 [--page tests/chaos/README.md] [--only SIGTERM,node]

The same seed draws the same disturbances. A failure says what was drawn, and where the run's folder and log are.
Exit status 0, or 1 with what went wrong.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import ray

from megatron_nft.actor.manifest import CheckpointError, damages, read_manifest
from megatron_nft.observe.records import read_records
from megatron_nft.run.checkpoint_folder import published, step_of
from tests.chaos.driver import KINDS, PLACES, Disk, Memory, Plan, draw, drive
from tests.chaos.pool import Pool
from tests.e2e.driver import records

STEPS, KEEP = 5, 2
SETTINGS = [
    "actor.tp=1", f"train.steps={STEPS}", "train.groups_per_step=2", "train.updates_per_step=1",
    "train.evaluate_every=2", "rollout.group_size=8", "rollout.max_answer_tokens=48", "rollout.kv_cache_gib=0.1",
    "rollout.max_concurrent=16", "evaluate.max_prompts=4", "evaluate.samples=0", "checkpoint.every=1",
    f"checkpoint.keep_last={KEEP}", 'data.train=["tests/assets/quickstart/held_out.parquet"]',
    "cluster.max_restarts=20", "rollout.max_restarts=20", "verdict.workers=1", "actor.timeout_s=60",
    "rollout.timeout_s=60", "weights.timeout_s=60",
]  # fmt: skip
ENDS_S = 150.0
"""A driver that has not ended by then hangs."""
A_RUN = 5
"""Disturbances that a run meets at most; then it is let go to its end."""
WELL = {"SIGKILL": {-signal.SIGKILL}, "node": {-signal.SIGKILL}, "SIGTERM": {130}, "SIGUSR1": {75}, "SIGINT": {130}}
"""How a driver that is ended may end; or with 0, if it was at its end. With the others it goes on, or says why not."""


@dataclass(frozen=True)
class Row:
    """A disturbance, and what became of the run."""

    kind: str
    place: str
    lost: int  # steps that were recorded, and came again


class Wrong(AssertionError):
    """What must never be."""


class Run:
    """One run's folder, from outside."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self.status: int | None = None  # of the last driver

    def recorded(self) -> int:
        """The last step that metrics.jsonl has."""
        path = self.folder / "metrics.jsonl"
        kept = list(read_records(path)) if path.exists() else []
        return max((record["step"] for record in kept if record["kind"] == "step"), default=0)

    def newest(self) -> int:
        """The step of the newest checkpoint; all there are must be whole."""
        for folder in published(self.folder):
            try:
                wrong = damages(folder, manifest := read_manifest(folder), manifest)
            except CheckpointError as error:
                wrong = [str(error)]
            if wrong:
                raise Wrong(f"a published checkpoint is not whole: {wrong}")
        return step_of(published(self.folder)[0]) if published(self.folder) else 0

    def attempt(self, pool: Pool, plan: Plan | None, memory: Memory) -> int:
        """A driver, to its end; its exit status, negative for a signal."""
        pid = drive(pool.address, self.folder, SETTINGS, plan, memory, self.log)
        until = time.monotonic() + ENDS_S
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > until:
                os.kill(pid, signal.SIGUSR2)  # it writes down what it is at
                time.sleep(1.0)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise Wrong(f"the driver has not ended within {ENDS_S:g} s")
            time.sleep(0.02)
        self.status = os.waitstatus_to_exitcode(ended[1])
        return self.status

    def is_over(self) -> bool:
        """Nothing is left to do; not even a checkpoint that a full disk had no room for."""
        return self.status == 0 and self.newest() == STEPS

    def said(self) -> str:
        """By the last driver."""
        return self.log.read_text(errors="replace").rpartition("=== ")[2]

    def check_went_on(self, step: int) -> None:
        """The last driver, if it has got so far, has begun at a checkpoint of this step, or at a later one that it has
        completed."""
        (begun,) = re.findall(r"^(?:[\d:]+ )?resumed from .*: step (\d+)", self.said(), re.M)[:1] or ["0"]
        if re.search(r"^(?:[\d:]+ )?ready after", self.said(), re.M) and int(begun) < step:
            raise Wrong(f"it did not go on from step {step}, but from {begun}")

    def left_over(self) -> list[str]:
        """What should not be there once a run is done."""
        ends = (".partial", ".deleting", ".damaged", ".tmp")
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.name.endswith(ends)]


def disturb(run: Run, pool: Pool, plan: Plan, memory: Memory, disk: Disk | None) -> Row | None:
    """One driver, disturbed as planned; None: it came to its end before that."""
    before = run.newest()
    status = run.attempt(pool, plan, memory)
    if disk is not None:
        disk.mend()
    run.check_went_on(before)
    happened, after, recorded = memory.take(), run.newest(), run.recorded()
    if after < before:
        raise Wrong(f"the newest checkpoint was of step {before}, and is of step {after}")
    if status == 2:
        raise Wrong("the run is refused")
    if happened is None:
        expected = {0} | ({75} if plan.place == "stop" else set())
    else:
        expected = WELL.get(plan.kind, {0, 1, 75}) | {0} | ({75, 130} if plan.place == "stop" else set())
    if happened and happened["where"] in ("start", "between") and plan.kind.startswith("SIG"):
        expected |= {-getattr(signal, plan.kind)}  # before it heeds them
    if status not in expected:
        raise Wrong(f"exit status {status}, and not one of {sorted(expected)}")
    if happened and plan.kind in ("SIGTERM", "SIGUSR1") and plan.place != "stop" and recorded > after:
        raise Wrong(f"stopped after step {recorded}, and saved step {after}")
    if recorded - after > 1 and plan.kind not in ("full disk", "read-only"):
        raise Wrong(f"{recorded} steps were done, and the newest checkpoint is of step {after}")
    return happened and Row(plan.kind, happened["where"], max(recorded - after, 0))


def finish(run: Run, pool: Pool, memory: Memory, straight: list[dict[str, Any]] | None) -> None:
    """An undisturbed driver, to the run's end; then it must be the run that nobody disturbed."""
    before = run.newest()
    if not run.is_over():  # in spite of what happened
        if (status := run.attempt(pool, None, memory)) != 0:
            raise Wrong(f"undisturbed, it ends with {status}")
        run.check_went_on(before)
    if straight is not None and records(run.folder) != straight:
        raise Wrong("its records are not those of a run that nobody disturbed")
    if left := run.left_over():
        raise Wrong(f"left behind: {left}")
    if not (run.folder / "hf" / "config.json").is_file() or run.newest() != STEPS:
        raise Wrong("no model, or no last checkpoint")


def kill_often(kills: int, seed: int, root: Path, only: Sequence[str] = tuple(KINDS)) -> list[Row]:
    """So many disturbances, in as many runs as it takes.

    Raises:
        Wrong: with the seed, the disturbance, and where to look.
    """
    assert not ray.is_initialized(), "drivers are forked from this process, and Ray can't be"
    rows: list[Row] = []
    with ExitStack() as stack:
        disk: Disk | None = Disk(root / "disk")
        kinds = [kind for kind in KINDS if kind in only]
        if disk.make():
            stack.callback(disk.remove)
        else:
            kinds, disk = [kind for kind in kinds if kind not in ("full disk", "read-only")], None
        memory = Memory()
        pool = Pool(root)
        stack.callback(pool.close)
        straight = Run(root / "disk" / "straight", root / "straight.log")
        finish(straight, pool, memory, None)
        expected, number, drawn = records(straight.folder), 0, 0
        while len(rows) < kills:
            run = Run(root / "disk" / f"run_{number}", root / f"run_{number}.log")
            plan, met = None, 0
            try:
                while met < A_RUN and len(rows) < kills and not run.is_over():
                    plan, drawn = draw(Random(f"{seed}/{drawn}"), kinds), drawn + 1
                    row = disturb(run, pool, plan, memory, disk)
                    met += 1
                    if row is not None:
                        rows.append(row)
                        print(f"{len(rows)}/{kills} {row} {plan}", flush=True)
                plan = None
                finish(run, pool, memory, expected)
            except Wrong as error:
                kept = root / "wrong"
                shutil.copytree(run.folder, kept, symlinks=True)
                raise Wrong(f"seed {seed}, disturbance {drawn - 1}, {plan}: {error}; see {kept}, {run.log}") from None
            shutil.rmtree(run.folder)  # room for the next
            number += 1
    return rows


def table(rows: Sequence[Row], seed: int, minutes: float) -> str:
    """Of the page."""
    counts = Counter((row.kind, row.place) for row in rows)
    places = [place for place in [*PLACES, "between"] if any(row.place == place for row in rows)]
    head = f"| | {' | '.join(places)} | all |"
    lines = [head, "| --- |" + " ---: |" * (len(places) + 1)]
    for kind in [kind for kind in KINDS if any(row.kind == kind for row in rows)]:
        of_kind = [counts[kind, place] for place in places]
        lines.append(f"| {kind} | {' | '.join(map(str, of_kind))} | {sum(of_kind)} |")
    lost = Counter(row.lost for row in rows)
    return (
        f"\n`python -m tests.chaos.kills --kills {len(rows)} --seed {seed}`, {date.today():%d %B %Y}, "
        f"{minutes:.0f} minutes, {os.cpu_count()} cores:\n{len(rows)} disturbances; "
        + ", ".join(f"{num} cost {steps} step{'s' if steps != 1 else ''}" for steps, num in sorted(lost.items()))
        + " that had been recorded. Every run went on to its end, with the\nrecords of a run that nobody disturbed.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of disturbance (default: %(default)s)")
    parser.add_argument("--page", type=Path, help="append the table to this file")
    arguments = parser.parse_args()
    root, start = Path(mkdtemp(prefix="chaos-", dir="/tmp")), time.monotonic()
    print(f"in {root}", flush=True)
    try:
        rows = kill_often(arguments.kills, arguments.seed, root, arguments.only.split(","))
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = table(rows, arguments.seed, (time.monotonic() - start) / 60)
    print(text)
    if arguments.page:
        with arguments.page.open("a") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
