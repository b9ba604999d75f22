"""Grading processes on all nodes: a pool like verdict/pool.py's, with one of those on each node beside the driver's.

Calls come in, verdicts go out; each node's share is as large as it is fast, and what hangs costs its own node's workers
only. The judge of a run takes it when verdict.workers is more than the driver's node has cores.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from megatron_nft.cluster.nodes import living_nodes
from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.check import own_graders
from megatron_nft.verdict.own_grader import prepare
from megatron_nft.verdict.pool import PRELOAD, Call, GradingPool, JudgeError, longest_wait

CALLS_PER_WORKER = 4
"""That a node is sent at once: its workers have work while the next share is on its way, and a hanging call holds back
the verdicts of few others."""
ANSWER_S = 30.0
"""For a node's pool to say that it is late itself."""


class NodeGraders:
    """One node's pool. A Ray actor; its processes die with it."""

    def __init__(self, workers: int, own: Sequence[str], memory_gib: float) -> None:
        self._pool = GradingPool(workers, partial(prepare, own), PRELOAD, memory_gib)

    def run(self, calls: Sequence[Call], deadline_s: float) -> list[Any]:
        """The verdicts of some calls, in order."""
        return self._pool.run(calls, deadline_s)

    def close(self) -> None:
        """Ends the node's workers."""
        self._pool.close()


class SpreadPool:
    """Pools of all nodes as one. Used as a GradingPool is, by one thread at a time.

    Args:
        nodes: Ray's ids of the nodes; `workers` are shared out evenly.
    """

    def __init__(self, config: VerdictConfig, nodes: Sequence[str]) -> None:
        self.workers, self._nodes = config.workers, list(nodes)
        self._each = each = -(-config.workers // len(nodes))
        self._share = CALLS_PER_WORKER * each
        actor = ray.remote(num_cpus=0)(NodeGraders)
        self._actors = [
            actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                each, own_graders(config), config.memory_gib
            )
            for node in nodes
        ]

    def run(
        self, calls: Sequence[Call], deadline_s: float, on_done: Callable[[int, Any], None] | None = None
    ) -> list[Any]:
        """As GradingPool.run. The calls of a node that is lost go to the others.

        Raises:
            JudgeError: grading is broken on a node, or no node is left. One that doesn't answer in time is ended.
        """
        results: dict[int, Any] = {}
        waiting = deque(range(len(calls)))
        idle, under_way, due = deque(self._actors), {}, {}
        size = max(1, min(self._share, -(-len(calls) // len(self._actors)))) if self._actors else 1
        while waiting or under_way:
            while waiting and idle:
                share = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                node = idle.popleft()
                ref = node.run.remote([calls[place] for place in share], deadline_s)
                under_way[ref] = (node, share)
                due[ref] = time.monotonic() + ANSWER_S + longest_wait(deadline_s, len(share), self._each)
            if not under_way:
                raise JudgeError(f"no node is left to grade {len(waiting)} of {len(calls)} answers")
            first = min(under_way, key=due.__getitem__)
            done, _ = ray.wait(list(under_way), timeout=max(due[first] - time.monotonic(), 0.0))
            ready = done[0] if done else first
            node, share = under_way.pop(ready)
            try:
                if not done:
                    ray.kill(node)
                verdicts = ray.get(ready)
            except RayActorError:
                self._actors = [other for other in self._actors if other is not node]
                waiting.extendleft(reversed(share))
                continue
            idle.append(node)
            for place, verdict in zip(share, verdicts, strict=True):
                results[place] = verdict
                if on_done is not None:
                    on_done(place, verdict)
        return [results[place] for place in range(len(calls))]

    def close(self) -> None:
        """Ends all workers."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


def spread_pool(config: VerdictConfig) -> SpreadPool | None:
    """A pool over all nodes of the Ray that is joined, if the driver's has too few cores for verdict.workers."""
    nodes = [node.ray_id for node in living_nodes()]
    return SpreadPool(config, nodes) if len(nodes) > 1 and config.workers > (os.cpu_count() or 1) else None
