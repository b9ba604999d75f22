"""Processes that grade answers and can be killed: calls in, verdicts out, each call under its own deadline.

judge.py owns the one pool of a run. pebble kills and replaces a worker whose call is late; what it can't know is here:
limits on a worker's memory, its end when the driver dies, and what to do when a worker dies between two calls.

One call is one task (no chunks): pebble moves 4,000 to 8,000 tasks/s, math-verify grades 100 to 800 answers/s a
process, and a chunk would have its innocent members graded twice whenever one of them hangs.
"""

import fcntl
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.spawn
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from pebble import ProcessExpired, ProcessPool

from megatron_nft.types import Verdict

# (function, extracted answer, ground truth ...). The function is pickled by name: a module's, no lambda.
Call = tuple[Callable[..., Verdict], *tuple[Any, ...]]

PRELOAD = ("megatron_nft.verdict.preload",)
"""What every worker has imported. One list: a process has one fork server."""
MEMORY_GIB = 2.0  # address space above a fresh worker's; ((9!)!)! alone takes 0.8
WORN_SHARE = 0.5  # of the limit: a worker that keeps more of it after a call is replaced before the next one
WORN_EXIT_CODE = 75  # os.EX_TEMPFAIL: such a worker hands the next call back, unbegun
# Beyond the deadlines: starting all workers.
SLACK_S = 120.0
IDLE_CLOSE_S = 3.0  # that idle workers get to end by themselves
END_S = 15.0  # that others take to be ended: pebble asks for 3 s, then kills


def nothing() -> None:
    """The `prepare` of workers that need no preparation."""


class JudgeError(RuntimeError):
    """Grading itself is broken: workers don't start or keep dying, or known answers get a wrong verdict."""


class GradingPool:
    """Warm worker processes. Used by one thread at a time, not necessarily the main one.

    Args:
        workers: number of processes.
        prepare: runs once in each new worker, under no deadline; a module's function.
        preload: modules that the workers share, imported once in the process that they are forked from.
        memory_gib: that a worker may take beyond what it has when it starts. A call that needs more fails.
    """

    def __init__(
        self, workers: int, prepare: Callable[[], None], preload: Sequence[str] = (), memory_gib: float = MEMORY_GIB
    ):
        self.workers = workers
        self.memory_gib = memory_gib
        self.prepare = prepare
        self.preload = list(preload)
        self._pool: ProcessPool | None = None
        self._is_idle = True
        self._done: SimpleQueue[Any] = SimpleQueue()  # futures of the run under way; None: `close` ends it
        self._num_closed = 0

    def run(
        self, calls: Sequence[Call], deadline_s: float, on_done: Callable[[int, Verdict], None] | None = None
    ) -> list[Verdict]:
        """Runs all calls and returns their verdicts in order. `on_done(index, verdict)` is called as each arrives.

        A call that is late gets the kind "timeout"; one that raises, or takes its worker down, the kind "error".

        Raises:
            JudgeError: the workers die faster than they start, or nothing comes back, or another thread ends them.
        """
        verdicts: dict[int, Verdict] = {}
        self._is_idle = False
        num_breakdowns, num_closed = 0, self._num_closed
        while todo := [index for index in range(len(calls)) if index not in verdicts]:
            if num_breakdowns == 2:
                self._end()
                raise JudgeError(
                    f"the {self.workers} grading processes died twice, with {len(todo)} of {len(calls)} answers left; "
                    "see their messages above, and the node's memory"
                )
            pool = self._running_pool()
            self._done = SimpleQueue()
            futures = {pool.schedule(_call, args=calls[index], timeout=deadline_s): index for index in todo}
            for future in futures:
                future.add_done_callback(self._done.put)
            longest_wait_s = longest_wait(deadline_s, len(todo), self.workers)
            until, is_broken = time.monotonic() + longest_wait_s, False
            for _ in todo:
                try:
                    future = self._done.get(timeout=max(until - time.monotonic(), 0.0))
                except Empty:
                    self._end()
                    num_missing = len(calls) - len(verdicts)
                    raise JudgeError(
                        f"{num_missing} of {len(calls)} verdicts did not come in {longest_wait_s:.0f} s"
                    ) from None
                if self._num_closed != num_closed:
                    raise JudgeError("grading was ended while answers were graded")
                try:
                    verdict = _outcome(future, deadline_s)
                except BrokenProcessPool:  # a worker died while idle (the kernel's OOM killer): the rest again
                    is_broken = True
                    continue
                if verdict is not None:
                    verdicts[futures[future]] = verdict
                    if on_done is not None:
                        on_done(futures[future], verdict)
            # A fresh worker hands no call back: one that does nothing else exits with that code on its own.
            num_breakdowns += is_broken or not set(todo) & verdicts.keys()
        self._is_idle = True
        return [verdicts[index] for index in range(len(calls))]

    def close(self) -> None:
        """Ends the workers, busy or not, and a run under way in another thread. A later one starts new workers."""
        self._num_closed += 1
        self._done.put(None)
        self._end()

    def _end(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            # A worker that has just been replaced would end in a traceback, were its pipes gone before it has begun.
            pool.close()
            pool.join(timeout=IDLE_CLOSE_S if self._is_idle else 0.0)
        except TimeoutError:
            pool.stop()
            # A process that the kernel can't end (a file system that hangs) is not waited for.
            ending = threading.Thread(target=pool.join, name="end of the graders", daemon=True)
            ending.start()
            ending.join(END_S)

    def _running_pool(self) -> ProcessPool:
        if self._pool is not None and not self._pool.active:
            self._end()
        if self._pool is None:
            # forkserver: workers are forked from a small process that has done the imports, so that a killed one is
            # back in milliseconds; the driver's own memory, threads and CUDA are never forked.
            context = _Context()
            context.set_forkserver_preload(self.preload)
            initargs = (self.prepare, int(self.memory_gib * 2**30))
            self._pool = ProcessPool(self.workers, context=context, initializer=_start_worker, initargs=initargs)
        return self._pool


def longest_wait(deadline_s: float, num_calls: int, workers: int) -> float:
    """Seconds for so many calls, if each is late."""
    return SLACK_S + 2 * (deadline_s + 1) * num_calls / workers


def _outcome(future, deadline_s: float) -> Verdict | None:
    """None where a worn worker has handed the call back."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except TimeoutError:
        return Verdict(kind="timeout", detail=f"not graded within {deadline_s:g} s")
    except ProcessExpired as error:
        if error.exitcode == WORN_EXIT_CODE:
            return None
        return Verdict(kind="error", detail=f"the grading process died with exit code {error.exitcode}")
    except Exception as error:
        return Verdict(kind="error", detail=f"{type(error).__name__}: {error}"[:200])


class _Process(multiprocessing.context.ForkServerProcess):
    """A worker that does not run the driver's main module again.

    multiprocessing would, in every new process: for seconds if it imports torch, without end if it is a script that
    grades at its top level, and in vain if it came through standard input. A grader is a module's function.
    """

    @staticmethod
    def _Popen(process):
        _starting_worker.now = True
        try:
            return multiprocessing.context.ForkServerProcess._Popen(process)
        finally:
            _starting_worker.now = False


class _Context(multiprocessing.context.ForkServerContext):
    Process = _Process


_starting_worker = threading.local()
_preparation_data = multiprocessing.spawn.get_preparation_data


def _preparation_data_of_worker(name: str) -> dict[str, Any]:
    """In the place of multiprocessing.spawn's (Python 3.11 to 3.14), which has no setting for this."""
    data = _preparation_data(name)
    if getattr(_starting_worker, "now", False):
        data = {key: value for key, value in data.items() if not key.startswith("init_main_from")}
    return data


multiprocessing.spawn.get_preparation_data = _preparation_data_of_worker


_worn_bytes = sys.maxsize
"""In a worker: the memory at which it asks to be replaced."""


def _call(function: Callable[..., Verdict], *arguments: Any) -> Verdict:
    """Runs in a worker. Caches that grow (the parser's tables, sympy's) and heaps in pieces end with their process."""
    global _worn_bytes
    if _used_bytes() > _worn_bytes:
        os._exit(WORN_EXIT_CODE)
    try:
        return function(*arguments)
    except MemoryError:
        _worn_bytes = 0
        return Verdict(kind="error", detail="grading it takes more memory than verdict.memory_gib")


def _start_worker(prepare: Callable[[], None], memory_bytes: int) -> None:
    """Runs first in each worker. pebble has it ignore SIGINT already: Ctrl-C is the driver's."""
    # pebble's own handler is Python code: it would never run while a big-integer product holds the interpreter, and
    # pebble would wait 3 s before it kills.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_driver()
    _limit_memory(memory_bytes)
    # A failure is not the worker's to report: the first answers come back as "error", and Judge.warm_up says why.
    with suppress(Exception):
        prepare()
    global _worn_bytes
    _worn_bytes = _used_bytes() + int(WORN_SHARE * memory_bytes)


def _die_with_driver() -> None:
    """The kernel ends this process when the driver's end of their pipe closes, even a driver killed by SIGKILL.

    PR_SET_PDEATHSIG would not do: the parent is the fork server, and that lives as long as any worker. A thread waiting
    on the pipe would not either: it needs the interpreter, which a hanging answer holds.
    """
    pipe = multiprocessing.parent_process().sentinel
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the default action is to end the process
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if multiprocessing.connection.wait([pipe], timeout=0):  # it closed before there was a signal for it
        os._exit(1)


def _limit_memory(extra_bytes: int) -> None:
    """Of address space: resident memory has no limit that the kernel would keep."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _used_bytes(resident=False) + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _used_bytes(resident: bool = True) -> int:
    """Of this process: resident, or its address space."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[resident]) * resource.getpagesize()
