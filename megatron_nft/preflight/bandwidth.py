"""All-reduce inside every node, and between each node and its neighbours: a slow or dead link has a name.

Every rank (one a GPU; one a node on CPUs) calls `Rank` in a process of its own, at the same time. Nodes are measured in
pairs, 1-2 3-4 ... and then 2-3 4-5 ..., at once: a node that is slow with both its neighbours is slow.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

MIB = 1 << 20
SIZE_MIB = {"nccl": 512, "gloo": 8}
REPEATS = {"nccl": 8, "gloo": 3}
TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Of one rank's node, in GB/s of bus bandwidth; None where there is nobody to exchange with."""

    within: float | None
    between: dict[int, float]  # index of the neighbour -> with it
    all_s: float  # one all-reduce of all ranks, of a 16th of the data


def pairs(num_nodes: int) -> list[list[tuple[int, int]]]:
    """Rounds of disjoint pairs of neighbours, in a ring: every node has two, or one if there are two nodes."""
    if num_nodes < 2:
        return []
    even = [(i, i + 1) for i in range(0, num_nodes - 1, 2)]
    odd = [(i, i + 1) for i in range(1, num_nodes - 1, 2)]
    rounds = [even, odd]
    if num_nodes > 2:
        closing = (num_nodes - 1, 0)
        if num_nodes % 2 == 0:
            odd.append(closing)
        else:
            rounds.append([closing])
    return [r for r in rounds if r]


def open_port(address: str) -> str:
    """ "host:port" on this machine for all ranks to meet."""
    from megatron_nft.actor.topology import free_address

    return free_address(address)


def measure(master: str, rank: int, nodes: Sequence[int]) -> Bandwidth:
    """Called by all ranks at once.

    Args:
        master: "host:port" of rank 0.
        nodes: index of the node of every rank.
    """
    import torch
    import torch.distributed as dist

    backend = "nccl" if torch.cuda.is_available() and len(os.environ.get("CUDA_VISIBLE_DEVICES", "")) else "gloo"
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, init_method=f"tcp://{master}", rank=rank, world_size=len(nodes), timeout=TIMEOUT)
    try:
        mine, num_nodes = nodes[rank], max(nodes) + 1
        data = torch.zeros(SIZE_MIB[backend] * MIB // 4, device=device)

        def members(*which: int) -> list[int]:
            return [r for r, node in enumerate(nodes) if node in which]

        def timed(group: Any, size: int, repeats: int = REPEATS[backend], part: int = 1) -> tuple[float, float]:
            """Seconds of an all-reduce, and GB/s of bus bandwidth."""
            some = data[: len(data) // part]
            dist.all_reduce(some, group=group)  # connects
            dist.barrier(group=group)
            start = time.perf_counter()
            for _ in range(repeats):
                dist.all_reduce(some, group=group)
            if backend == "nccl":
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - start) / repeats
            return seconds, 2 * (size - 1) / size * some.nbytes / seconds / 1e9

        within = None
        for node in range(num_nodes):
            ranks = members(node)
            group = dist.new_group(ranks) if len(ranks) > 1 else None
            if group is not None and node == mine:
                within = timed(group, len(ranks))[1]
        between = {}
        for pairs_at_once in pairs(num_nodes):
            groups = [(pair, members(*pair), dist.new_group(members(*pair))) for pair in pairs_at_once]
            dist.barrier()
            for pair, ranks, group in groups:
                if mine in pair:
                    between[pair[pair[0] == mine]] = timed(group, len(ranks))[1]
        all_s = timed(None, len(nodes), repeats=1, part=16)[0] if len(nodes) > 1 else 0.0
        return Bandwidth(within=within, between=between, all_s=all_s)
    finally:
        dist.destroy_process_group()
