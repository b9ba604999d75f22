"""A pseudo-terminal of a given width: what a program prints there, line by line, as it stands in the end."""

import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

CLEAR = "\r\x1b[K"
"""Before what takes a line's place."""


class Shown:
    """What has been printed."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    @property
    def lines(self) -> list[str]:
        """As they stand: without what was taken away again."""
        text = b"".join(self.parts).decode().replace("\r\n", "\n")
        return [line.rpartition(CLEAR)[2] for line in text.removesuffix("\n").split("\n")]  # splitlines cuts CLEAR

    @property
    def longest(self) -> int:
        """Of all that a line has held at a time."""
        text = b"".join(self.parts).decode().replace("\r\n", "\n")
        return max(len(part) for line in text.split("\n") for part in line.split(CLEAR))


@contextmanager
def pseudo_terminal(columns: int) -> Iterator[tuple[TextIO, Shown]]:
    """A stream that is a terminal, and what is shown there once the block has ended."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = Shown()

    def read() -> None:
        with suppress(OSError):  # the other side is closed
            while part := os.read(master, 1 << 16):
                shown.parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with os.fdopen(slave, "w") as stream:
            yield stream, shown
    finally:
        reader.join()
        os.close(master)
