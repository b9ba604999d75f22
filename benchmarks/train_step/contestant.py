"""The contestants, each in processes of its own that train one update when they are told to.

A process lives for all rounds of a case. Between its turns it waits on a pipe, outside of any collective, so that it
takes nothing from the one whose turn it is.
"""

import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.train_step.case import make_sequences
from megatron_nft.actor.topology import free_address

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Entry:
    """What runs, and how."""

    name: str
    program: str  # "floor", "trl" or "ours"
    batch: int  # tokens per forward pass; rows for TRL
    tp: int = 1
    pp: int = 1

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp


class Contestant:
    """The processes of an entry."""

    def __init__(self, entry: Entry, case: str, num_sequences: int, model_folder: str, threads: int) -> None:
        """
        Args:
            threads: of all its ranks together.
        """
        self.entry = entry
        context, master = multiprocessing.get_context("spawn"), free_address()
        os.environ["OMP_NUM_THREADS"] = str(max(1, threads // entry.num_ranks))  # the new processes inherit it
        self.pipes, self.processes = [], []
        for rank in range(entry.num_ranks):
            mine, its = context.Pipe()
            arguments = (its, entry, case, num_sequences, model_folder, rank, master)
            self.processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self.processes[-1].start()
            self.pipes.append(mine)

    def step(self) -> dict[str, float]:
        """One update: seconds of the slowest rank, CPU seconds of all ranks' threads, loss, gradient norm."""
        for pipe in self.pipes:
            pipe.send("step")
        answers = []
        for rank, pipe in enumerate(self.pipes):
            answer = pipe.recv() if pipe.poll(TIMEOUT_S) else f"nothing heard for {TIMEOUT_S:g} s"
            if isinstance(answer, str):
                raise RuntimeError(f"{self.entry.name}, rank {rank}: {answer}")
            answers.append(answer)
        (told,) = [a for a in answers if "loss" in a]
        spent = {"seconds": max(a["seconds"] for a in answers), "cpu_s": sum(a["cpu_s"] for a in answers)}
        return told | spent

    def stop(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.kill()
            process.join()


def _serve(pipe: Connection, entry: Entry, case: str, num_sequences: int, folder: str, rank: int, master: str) -> None:
    warnings.filterwarnings("ignore")  # Megatron says on every rank what isn't installed
    start = cpu_start = 0.0

    def begin() -> bool:
        nonlocal start, cpu_start
        pipe.recv()
        start, cpu_start = time.perf_counter(), time.process_time()
        return True

    def end(told: dict | None) -> None:
        spent = {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu_start}
        pipe.send({**(told or {}), **spent})

    try:
        sequences = make_sequences(case, num_sequences)
        if entry.program == "trl":
            from benchmarks.train_step import trl_trainer

            trl_trainer.run(folder, sequences, entry.batch, begin, end)
            return
        step = _step_of(entry, folder, sequences, rank, master)
        while begin():
            end(step())
    except EOFError:  # the parent has ended
        return
    except BaseException:
        pipe.send(traceback.format_exc())


def _step_of(entry: Entry, folder: str, sequences: list, rank: int, master: str) -> Callable[[], dict | None]:
    if entry.program == "floor":
        from benchmarks.train_step import floor

        return floor.build(folder, sequences, entry.batch)
    from benchmarks.train_step import ours

    return ours.build(folder, sequences, entry.batch, tp=entry.tp, pp=entry.pp, rank=rank, master=master)
