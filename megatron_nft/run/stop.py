"""Stopping a run from outside in good order: a signal comes at any time, and is heeded where nothing gets lost.

SIGUSR1 (Slurm's warning ahead of the time limit) and SIGTERM ask for a stop. Inside `interruptible` blocks the answer
is at once, elsewhere at the next such block: an optimizer update is never cut in two. Called by train.py.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequested(KeyboardInterrupt):
    """A signal asks for an end. No Exception: no handler of errors is to take it for one. A KeyboardInterrupt: of what
    a signal's handler raises, Ray's waiting ends at once for that alone (`check_signals` in ray/_raylet.pyx).

    Attributes:
        goes_on: nothing was lost that the same command would lose again.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.goes_on = number, True


class Stop:
    """Heeds SIGNALS from its making to `close`."""

    def __init__(self) -> None:
        self._received: int | None = None  # and not heeded yet
        self._raised: int | None = None  # in this block
        self._may_raise = False
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def close(self) -> None:
        """Gives the signals back to whoever heeded them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that may end anywhere.

        Raises:
            StopRequested: a signal has come, before or within the block; once. Also where code in C made another
                exception of it (Ray a new KeyboardInterrupt, Cython's functions a SystemError), or none.
        """
        self._may_raise, self._raised = True, None
        try:
            if self._received is not None:
                self._raise()
            yield
        except BaseException as error:
            if self._raised is None or isinstance(error, StopRequested):
                raise
            raise StopRequested(self._raised) from error
        else:
            if self._raised is not None:
                raise StopRequested(self._raised)
        finally:
            self._may_raise = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if self._may_raise:
            self._raise()

    def _raise(self) -> None:
        self._raised, self._received, self._may_raise = self._received, None, False
        assert self._raised is not None
        raise StopRequested(self._raised)
