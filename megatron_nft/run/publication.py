"""A checkpoint on its way to its name: published by a thread as soon as it is whole, wherever the run is at.

Ranks and driver write their files into a folder, each with a word that it is done (actor/checkpoint_parts.py). The
thread looks for these words, so that neither an evaluation nor a rollout of ten minutes lies between the last byte on
the disk and a checkpoint that counts. It asks no rank: those may be training. Called by checkpoints.py.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from megatron_nft.actor.checkpoint_parts import missing_parts
from megatron_nft.run import checkpoint_folder

FIRST_S, SLOWER, LONGEST_S = 0.02, 0.05, 1.0
"""Between two looks: at first, the more for each second that it takes, and at most."""


class Publication:
    """Of one checkpoint.

    Args:
        partial: the folder that is being written.
        write: writes the driver's share of it, in the thread.
        on_published: what is to be done then, in the thread.
        check: raises an error where the folder is another run's by now; asked in the thread, before it is published.
    """

    def __init__(
        self,
        partial: Path,
        write: Callable[[], None],
        on_published: Callable[[], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.partial = partial
        self.error: Exception | None = None
        """Why it could not be published, once it `is_over`."""
        self._write, self._on_published, self._check = write, on_published, check
        self._over, self._asked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="publication", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether it is published, or can't be."""
        return self._over.is_set()

    @property
    def is_published(self) -> bool:
        """Whether it has its name."""
        return self.is_over and self.error is None

    def wait(self, seconds: float) -> bool:
        """For so long at most; `is_over`."""
        return self._over.wait(seconds)

    def close(self) -> None:
        """Ends the thread. What is whole by now is published, what is not stays as it is."""
        self._asked.set()
        self._thread.join()

    def _watch(self) -> None:
        begun = time.monotonic()
        try:
            self._write()
        except Exception as error:  # whatever it is, the run goes on without this checkpoint
            self.error = error
            self._over.set()
            return
        while not self._look():
            if self._asked.is_set():
                self._look()  # once more: it may have become whole since
                return
            self._asked.wait(min(LONGEST_S, FIRST_S + SLOWER * (time.monotonic() - begun)))

    def _look(self) -> bool:
        try:
            if missing_parts(self.partial):
                return False
            self._check()
            checkpoint_folder.complete(self.partial)
        except Exception as error:
            self.error = error
        else:
            with suppress(OSError):  # what can't be deleted now goes with the next one
                self._on_published()
        self._over.set()
        return True
