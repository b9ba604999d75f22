"""Runs a function on several real processes: rank by rank, over gloo, with a deadline."""

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 180.0) -> list[Any]:
    """Calls function(rank, "host:port", *args) in `world_size` fresh processes; what each returned, by rank.

    Raises:
        AssertionError: a rank raised (its traceback is shown) or did not finish in time.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    if not torch.cuda.is_available():  # else an import could start CUDA, which does not survive a fork
        # Ranks are forked from a server process that has imported Megatron (6 s) once, and started no thread.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["megatron_nft.actor.worker"])
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    ranks = [
        context.Process(target=_call, args=(results, rank, function, master, args), daemon=True)
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    try:
        answers = dict(results.get(timeout=timeout_s) for _ in ranks[:1])
        while len(answers) < world_size and not any(isinstance(a, RankError) for a in answers.values()):
            answers |= [results.get(timeout=timeout_s)]
    finally:
        for rank in ranks:
            rank.join(timeout=5)
            rank.kill()
    errors = [f"rank {rank}: {answer}" for rank, answer in answers.items() if isinstance(answer, RankError)]
    assert not errors, "\n".join(errors)
    return [answers[rank] for rank in range(world_size)]


class RankError(Exception):
    """A rank's traceback, as text."""


def _call(results: Any, rank: int, function: Callable[..., Any], master: str, args: tuple) -> None:
    warnings.filterwarnings("ignore")  # Megatron says on every rank what isn't installed
    try:
        results.put((rank, function(rank, master, *args)))
    except BaseException:
        results.put((rank, RankError(traceback.format_exc())))
    results.close()
    results.join_thread()
