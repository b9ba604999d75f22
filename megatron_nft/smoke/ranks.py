"""Smoke's own launcher, `--ranks N`: as many processes of this node, as torchrun would start them, and quieter.

The ranks' checks come through rank 0. If one ends early the others are ended, too; the first refusal is said once, as
the last line.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_nft.smoke.screen import FOLDER

LOOK_S = 0.2
GRACE_S = 5.0
"""That the others have to say what they ran into, once one has ended."""


def run_ranks(count: int, arguments: Sequence[str], address: str) -> int:
    """The exit status: that of the first rank that failed, or 0.

    Args:
        arguments: of each rank's command line.
        address: "host:port" where they meet.
    """
    logs = Path(tempfile.mkdtemp(prefix="nft_smoke_"))
    host, _, port = address.rpartition(":")
    common = {**os.environ, FOLDER: str(logs), "MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    common.setdefault("OMP_NUM_THREADS", "1")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "megatron_nft.smoke", *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    try:
        status = _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if status:
        for line in _last_words(logs, status):
            print(line, file=sys.stderr, flush=True)
    return status


def _wait(processes: Sequence[subprocess.Popen]) -> int:
    """Until all have ended, or one has failed and the others have had time to say why."""
    failed_at: float | None = None
    while any(process.poll() is None for process in processes):
        failed = [p for p in processes if p.poll() not in (None, 0)]
        failed_at = failed_at or (time.monotonic() if failed else None)
        if failed_at is not None and time.monotonic() > failed_at + GRACE_S:
            break
        time.sleep(LOOK_S)
    return next((p.returncode for p in processes if p.returncode not in (None, 0)), 0)


def _last_words(logs: Path, status: int) -> list[str]:
    """Why, once: the first refusal. Of checks that failed nothing is left to say."""
    errors = sorted(logs.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        return [f"error: {errors[0].read_text()} (logs: {logs})"]
    return [] if status == 1 else [f"error: a rank ended with status {status}; see {logs}"]
