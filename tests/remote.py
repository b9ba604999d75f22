"""An object in another process, called over a socket: a verb and its arguments go out, what it returns comes back."""

import traceback
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any


def serve(address: str, thing: Any) -> None:
    """Answers the calls from `address` until they end."""
    with Client(address, "AF_UNIX") as caller:
        while True:
            try:
                verb, arguments = caller.recv()
            except EOFError:
                return
            try:
                caller.send((True, getattr(thing, verb)(*arguments)))
            except BaseException:
                caller.send((False, traceback.format_exc()))


class Meeting:
    """A socket at which a process that will `serve` reports."""

    def __init__(self, folder: Path, name: str) -> None:
        self.address = str(folder / name)
        self._listener = Listener(self.address, "AF_UNIX")

    def accept(self) -> "Remote":
        """Waits until it has come."""
        with self._listener:
            return Remote(self._listener.accept())


class Remote:
    """The caller's side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, verb: str, *arguments: Any) -> None:
        """Calls `verb`; `wait` has its answer."""
        self._connection.send((verb, arguments))

    def wait(self, timeout_s: float = 120.0) -> Any:
        """What the call begun last returned; raises AssertionError with the other side's traceback if it raised."""
        assert self._connection.poll(timeout_s), f"no answer within {timeout_s:g} s"
        done, answer = self._connection.recv()
        assert done, answer
        return answer

    def call(self, verb: str, *arguments: Any) -> Any:
        self.begin(verb, *arguments)
        return self.wait()

    def close(self) -> None:
        """Ends the other side."""
        self._connection.close()
