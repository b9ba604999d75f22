"""Waiting for processes: deadlines, errors and deaths come back at once, with the name of who caused them."""

import os
import time

import pytest
import ray

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.processes import Pending

pytestmark = pytest.mark.e2e


class Process:
    def ping(self):
        pass

    def answer(self, value):
        return value

    def hang(self):
        time.sleep(600)

    def fail(self):
        raise ValueError("the optimizer is out of order")

    def die(self):
        os._exit(9)


@pytest.fixture(scope="module")
def processes(shared):
    processes = [ray.remote(Process).options(num_cpus=0).remote() for _ in range(2)]
    yield processes
    for process in processes:
        ray.kill(process)


def pending(processes, first, second, timeout_s=30.0):
    refs = {"actor rank 0": getattr(processes[0], first[0]).remote(*first[1:])}
    refs["actor rank 1"] = getattr(processes[1], second[0]).remote(*second[1:])
    return Pending("train_step", refs, timeout_s, {f"actor rank {i}": process for i, process in enumerate(processes)})


def test_answers_come_in_the_order_of_the_processes(processes):
    assert pending(processes, ("answer", 1), ("answer", 2)).wait() == [1, 2]


def test_an_error_does_not_wait_for_the_others(processes):
    start = time.monotonic()
    with pytest.raises(ValueError, match="out of order"):
        pending(processes, ("fail",), ("answer", 2)).wait()
    assert time.monotonic() - start < 10


def test_a_late_process_is_named(processes):
    with pytest.raises(ClusterError, match="train_step: no answer from actor rank 1 within 2 s"):
        pending(processes, ("answer", 1), ("hang",), timeout_s=2.0).wait()


def test_a_dead_process_is_named_while_others_hang(processes):
    start = time.monotonic()
    with pytest.raises(ClusterError, match="train_step: actor rank 0 died"):
        pending(processes, ("die",), ("answer", 1)).wait()  # rank 1 still hangs in the call of the test before
    assert time.monotonic() - start < 20
