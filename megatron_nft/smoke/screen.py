"""What smoke says, and what it keeps to itself: lines for people go to the screen, all else into a log.

Megatron, torch and transformers warn while they are imported and at work, on every rank, through Python and past it.
So file descriptors 1 and 2 lead into a log from here on; the screen is what standard output was.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import TextIO

FOLDER = "NFT_SMOKE_LOGS"
"""Variable with the folder of all ranks' logs; without it each makes its own."""


class Screen:
    """The process's standard output, while what others print goes into a log.

    Attributes:
        log: where that is.
    """

    def __init__(self, rank: int) -> None:
        folder = Path(os.environ.get(FOLDER) or tempfile.mkdtemp(prefix="nft_smoke_"))
        self.log = folder / f"rank_{rank}.log"
        self._out = _kept(sys.stdout)
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.close(file)

    def say(self, line: str) -> None:
        """A line for people."""
        print(line, file=self._out, flush=True)

    def refuse(self, reason: str) -> None:
        """The last line of a process that can't go on; its launcher, if it is this program's own, says it for all."""
        if FOLDER in os.environ:
            self.log.with_suffix(".error").write_text(reason)
        else:
            self.say(f"error: {reason} (log: {self.log})")


def _kept(stream: TextIO) -> TextIO:
    """The stream, wherever its descriptor will lead."""
    try:
        return os.fdopen(os.dup(stream.fileno()), "w")
    except (OSError, ValueError):  # no file, as in a test
        return stream
