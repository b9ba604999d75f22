"""Runs a function on several real processes: rank by rank, over gloo, with a deadline.

A rank is forked from a server process, one for all tests, which has imported Megatron and transformers (8 s) once and
never starts a thread. Not multiprocessing's own fork server: a process has one, and here verdict/pool.py has it.
"""

import gc
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 180.0, stage: str | None = None
) -> list[Any]:
    """Calls function(rank, "host:port", *args) in `world_size` fresh processes; what each returned, by rank.

    Args:
        stage: a module whose `play()` is called before Megatron is imported; the processes of a stage share that.

    Raises:
        AssertionError: a rank raised (its traceback is shown) or did not finish in time.
    """
    server = _server(stage)
    try:
        pickle.dump((world_size, function, args, timeout_s), server.stdin)
        server.stdin.flush()
        answers = pickle.load(server.stdout)
    except (EOFError, BrokenPipeError):
        _server.cache_clear()
        raise AssertionError(f"the process that forks ranks ended with status {server.wait()}") from None
    errors = [f"rank {rank}: {answer}" for rank, answer in answers.items() if isinstance(answer, RankError)]
    assert not errors, "\n".join(errors)
    missing = set(range(world_size)) - answers.keys()
    assert not missing, f"ranks {missing} sent nothing for {timeout_s:g} s"
    return [answers[rank] for rank in range(world_size)]


class RankError(Exception):
    """A rank's traceback, as text."""


# --- The server ------------------------------------------------------------------------------------------------------


@cache
def _server(stage: str | None) -> subprocess.Popen:
    """Ends by itself when this process does."""
    command = [sys.executable, "-c", f"from tests.parallel.ranks import serve; serve({stage!r})"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if stage is not None:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # Megatron's fusions, for a GPU, would be compiled for this CPU
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def serve(stage: str | None = None) -> None:
    """Answers the requests of `run_ranks` on stdin until it is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a rank prints is no answer
    warnings.filterwarnings("ignore")  # Megatron says on every rank what isn't installed
    import torch

    # Where there is CUDA, an import may start it, and it does not survive a fork.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    if stage is not None:
        import_module(stage).play()
    from transformers import AutoModelForCausalLM  # noqa: F401

    import megatron_nft.actor.worker  # noqa: F401

    gc.collect()
    gc.freeze()  # else each rank's collections go through all that was imported, and copy its memory: 0.3 s each
    while True:
        try:
            world_size, function, args, timeout_s = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_run(context, world_size, function, args, timeout_s), answers)
        answers.flush()


def _run(context: Any, world_size: int, function: Callable[..., Any], args: tuple, timeout_s: float) -> dict[int, Any]:
    """What ranks returned, or the first RankErrors; ranks that were late are missing."""
    from megatron_nft.actor.topology import free_address

    results, master = context.Queue(), free_address()
    # No daemons: a rank may have children of its own, as Megatron's checkpoint writer does.
    ranks = [context.Process(target=_call, args=(results, rank, function, master, args)) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    answers: dict[int, Any] = {}
    try:
        while len(answers) < world_size and not any(isinstance(a, RankError) for a in answers.values()):
            answers |= [results.get(timeout=timeout_s)]
    except queue.Empty:
        pass
    finally:
        for rank in ranks:
            rank.join(timeout=5)
            rank.kill()
    return answers


def _call(results: Any, rank: int, function: Callable[..., Any], master: str, args: tuple) -> None:
    warnings.filterwarnings("ignore")
    try:
        results.put((rank, function(rank, master, *args)))
    except BaseException:
        results.put((rank, RankError(traceback.format_exc())))
    results.close()
    results.join_thread()
