"""Sums of two ranks through memory are gloo's, bit by bit; what doesn't go that way still goes."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel
SHAPES = [(3, 5), (4096, 128), (2500, 1024), (70_001,)]
"""Gloo's by its size; one part; three parts; an odd number."""


def sums(rank, master):
    from megatron_nft.actor import cpu_messages

    dist.init_process_group(
        "gloo", init_method=f"tcp://{master}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    group, other = dist.new_group([0, 1]), dist.new_group([0, 1])
    torch.manual_seed(rank)
    given = [torch.randn(shape) for shape in SHAPES]
    given += [given[1].bfloat16(), given[1].double(), given[1].t(), torch.full((9000,), float("inf"))]
    found = {"gloo": all_summed(given, group)}
    before = set(os.listdir("/dev/shm"))
    cpu_messages.share_memory(group, 5.0)
    dist.barrier()
    found["left in /dev/shm"] = [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("nft_sums")]
    found["memory"], found["another group"] = all_summed(given, group), all_summed(given, other)
    found["went through memory"] = cpu_messages._shared[group]._count
    highest = torch.full((9000,), float(rank))
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    found["highest"] = float(highest.min())
    wrong = 0
    for i in range(200):  # the slots come again and again
        x = torch.full((4097 * (1 + i % 7),), float(rank + i))
        dist.all_reduce(x, group=group, async_op=True).wait()
        wrong += int((x != 2 * i + 1).sum())
    found["wrong"] = wrong
    if rank == 0:  # alone: the other doesn't come
        try:
            cpu_messages._shared[group]._timeout_s = 0.2
            dist.all_reduce(torch.zeros(9000), group=group)
        except RuntimeError as error:
            found["alone"] = str(error)
    cpu_messages.forget_shared_memory()
    found["is torch's again"] = dist.all_reduce is cpu_messages._gloo_all_reduce
    dist.barrier()
    dist.destroy_process_group()
    return found


def all_summed(given, group):
    copies = [x.clone(memory_format=torch.preserve_format) for x in given]
    for x in copies:
        dist.all_reduce(x, group=group)
    return [x.tolist() for x in copies]


def test_sums_through_memory_are_gloos():
    ranks = run_ranks(2, sums)
    for rank in ranks:
        assert rank["memory"] == rank["gloo"] == rank["another group"] == ranks[0]["gloo"]
        assert rank["left in /dev/shm"] == [] and rank["is torch's again"]
        assert rank["went through memory"] == 1 + 3 + 1 + 1 + 1 + 1, "of large contiguous ones, by their parts"
        assert rank["highest"] == 1 and rank["wrong"] == 0
    assert ranks[0]["alone"] == "the other tensor-parallel rank sent nothing for 0.2 s"
