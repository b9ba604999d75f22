"""What the commands have in common: arguments, progress, an output folder that is whole or not there, errors in words.

Exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.
"""

import argparse
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from checkpoint_tools.safetensors_writer import CastError
from megatron_nft.actor.manifest import CheckpointError, to_disk
from megatron_nft.config import path_argument
from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.weights.export import hf_folder_in_progress

CASTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""--dtype."""
MARKS = ("metadata.json", "config.json", "model.safetensors.index.json")
"""--overwrite takes the place of folders that have one of these, and of empty ones: not of a home directory."""
SLACK_BYTES = 64 << 20
"""For what is not numbers: headers, tokenizer, metadata."""


class UsageError(ValueError):
    """Arguments that can't be meant."""


EXPECTED = (UsageError, ModelFolderError, CheckpointError, CastError, SafetensorError, OSError, RuntimeError)
"""Errors that are said in a sentence; any other is a mistake in these tools and keeps its traceback."""


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """--out, --overwrite, --dtype."""
    parser.add_argument(
        "--out", type=path_argument, metavar="DIR", required=True, help="folder to write; it appears when it is whole"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    parser.add_argument("--dtype", choices=CASTS, help="cast the weights (default: as they are)")


def run(
    body: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parses, runs the command, and turns errors into a sentence on stderr and an exit status."""
    arguments = parser.parse_args(argv)
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    # A signal that is ignored, as by nohup, stays so.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        return body(arguments) or 0
    except (KeyboardInterrupt, Exception) as error:
        # In the middle of a write torch makes another error of the KeyboardInterrupt.
        if received or isinstance(error, KeyboardInterrupt):
            print(f"{parser.prog}: interrupted; nothing was published, start it again", file=sys.stderr)
            return 130
        if not isinstance(error, EXPECTED):
            raise
        print(f"{parser.prog}: {_in_words(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def output_folder(out: Path, *, source: Path, num_bytes: int, overwrite: bool) -> Iterator[Path]:
    """An empty folder to write into, which takes the name `out` at the end; removed on an error or an interrupt.

    Raises:
        UsageError: `out` is there and may not be replaced, or is the source.
        OSError: the disk has no room for it.
    """
    target = out.resolve()
    if target == source.resolve() or target in source.resolve().parents:
        raise UsageError(f"--out {out} is what is read from; name another folder")
    if target.exists():
        if not overwrite:
            raise UsageError(f"--out {out} is there already; name another folder, or give --overwrite to replace it")
        if not target.is_dir() or (any(target.iterdir()) and not any((target / mark).exists() for mark in MARKS)):
            raise UsageError(f"--out {out} is neither a checkpoint nor a model; --overwrite does not replace it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with hf_folder_in_progress(target) as partial:  # clears what a killed run has left there
        free = shutil.disk_usage(partial).free
        if free < num_bytes + SLACK_BYTES:
            needed = f"{(num_bytes + SLACK_BYTES) / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
            raise OSError(errno.ENOSPC, f"{needed}; make room, or name an --out on another disk", str(target.parent))
        yield partial
        for file in partial.rglob("*"):
            to_disk(file)
        to_disk(partial)


class Progress:
    """Lines on stderr: a changing one on a terminal, one every tenth in a log."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self._what, self._total, self._done = what, max(total_bytes, 1), 0
        self._start, self._shown = time.monotonic(), -1
        self._is_terminal = sys.stderr.isatty()

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        share = int(100 * self._done / self._total)
        if share // (1 if self._is_terminal else 10) > self._shown:
            self._shown = share // (1 if self._is_terminal else 10)
            self._show(share)

    def _show(self, share: int) -> None:
        seconds = max(time.monotonic() - self._start, 1e-6)
        sizes = f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        text = f"{self._what}: {share:3d}% | {sizes} | {self._done / 1e9 / seconds:.2f} GB/s"
        end = "\n" if not self._is_terminal or share >= 100 else "\r"
        print(text, end=end, file=sys.stderr, flush=True)


def dtype_name(dtype: torch.dtype) -> str:
    """As config.json and --dtype write it."""
    return str(dtype).removeprefix("torch.")


def _in_words(error: Exception) -> str:
    """torch wraps a failed write of its own into a RuntimeError; the disk's error is then its context."""
    if isinstance(error, ValueError | SafetensorError | CheckpointError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    if not isinstance(cause, OSError):
        return f"{type(error).__name__}: {error}"
    where = f"{cause.filename}: " if cause.filename else ""
    hint = "; make room, or name an --out on another disk" if cause.errno == errno.ENOSPC and not where else ""
    return f"{where}{cause.strerror or os.strerror(cause.errno or 0)}{hint}"
