"""A command as a user starts it, ended from outside; a `main` called in this process; and what a run left behind."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from unittest import mock

import pytest
import torch

from checkpoint_tools.megatron_folder import MegatronFolder
from megatron_nft import train, train_async

RECIPE = "launch/recipes/quickstart.toml"
SMALL = ["train.groups_per_step=8", "train.updates_per_step=2", "evaluate.max_prompts=24", "evaluate.samples=0",
         "rollout.engines=1"]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str


# --- as a user starts it


def start(tmp_path, *overrides, module="megatron_nft.train"):
    """A training process in a session of its own, marked in its environment so that its children can be found."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", module, RECIPE, f"run.dir={tmp_path}", *SMALL, *overrides],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "MEGATRON_NFT_TEST_MARK": mark},
        # A shell's background jobs, and all below them, ignore Ctrl-C; a user's terminal doesn't.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    return process, mark


def living(mark):
    """Living processes that carry the mark: pid -> command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes() and "State:\tZ" not in (entry / "status").read_text():
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def assert_no_survivors(mark):
    deadline = time.monotonic() + 15
    while living(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert list(living(mark).values()) == []


def without_clock(line):
    """A log's line without the time of day before it."""
    return re.sub(r"^\d\d:\d\d:\d\d ", "", line)


def wait_for(process, beginning):
    """Until the driver prints a line that begins so, the time of day aside."""
    for line in process.stdout:
        if without_clock(line).startswith(beginning):
            return
    pytest.fail(process.stderr.read())


def wait_until(condition, process=None, limit_s=120.0):
    """Until it holds, while the process lives."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(process, mark):
    """As the end of a node: driver, Ray, ranks and engines, without a word."""
    for pid in living(mark):
        with suppress(ProcessLookupError):  # Ray ends some by itself
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert_no_survivors(mark)


def last_pid(run, name):
    """Of "actor_rank_1", by its log."""
    return int(re.findall(r"=== process (\d+) on", (run / "logs" / "attempt_1" / f"{name}.log").read_text())[-1])


# --- in this process


def call(main: Callable[[], int], *arguments: object, out: TextIO | None = None) -> Ended:
    """A command's `main` with these arguments; what it prints goes to `out`, or is returned."""
    printed, err, on_sigterm = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", ["command", *map(str, arguments)]),
            redirect_stdout(out or printed),
            redirect_stderr(err),
        ):
            status = main()
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    return Ended(status, printed.getvalue(), err.getvalue())


def call_train(
    folder: Path,
    *overrides: str,
    is_ahead: bool = False,
    out: TextIO | None = None,
    recipe: str = RECIPE,
    only: Sequence[str] | None = None,
) -> Ended:
    """The command `train`, or `train_async`.

    Args:
        only: settings in place of those that make the quickstart's recipe small.
    """
    settings = SMALL if only is None else only
    return call((train_async if is_ahead else train).main, recipe, f"run.dir={folder}", *settings, *overrides, out=out)


def refused(folder: Path, *overrides: str, is_ahead: bool = False) -> Ended:
    """`call_train`, which must end before it starts any process."""
    with mock.patch("megatron_nft.run.run.start_processes", side_effect=AssertionError("processes were started")):
        return call_train(folder, *overrides, is_ahead=is_ahead)


@contextmanager
def as_soon_as(condition: Callable[[], bool], action: Callable[[], object]) -> Iterator[None]:
    """Does something as soon as something else is the case, once, while the block goes on; within it, it must be."""
    has_ended, has_acted = threading.Event(), threading.Event()

    def watch() -> None:
        while not has_ended.is_set():
            if condition():
                action()
                has_acted.set()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
    assert has_acted.is_set(), "it never came to that"


# --- what a run left


def all_records(run):
    """Of metrics.jsonl."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def records(run):
    """Of metrics.jsonl, without what a clock says."""
    timed = ("time", "perf/", "weights/", "memory/", "engine/")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in all_records(run)]


def steps(run):
    """A step's records, with their times."""
    return [record for record in all_records(run) if record["kind"] == "step"]


def order(run):
    """What kind of record of which step comes after which."""
    return [(record["kind"], record["step"]) for record in all_records(run)]


def has_step(run, step):
    """Its record is written."""
    return ("step", step) in order(run)


def bytes_of_weights(folder):
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    return total


def same_bits(one, other):
    """Of two checkpoints."""
    first, second = MegatronFolder(one), MegatronFolder(other)
    assert first.tensors.keys() == second.tensors.keys() and any("exp_avg" in key for key in first.tensors)
    for key, tensor in first.tensors.items():
        chunks = {chunk.offset: chunk for chunk in second.tensors[key].chunks}
        for chunk in tensor.chunks:
            assert torch.equal(first.read(tensor, chunk), second.read(second.tensors[key], chunks[chunk.offset])), key
    assert first.read_common() == second.read_common()
