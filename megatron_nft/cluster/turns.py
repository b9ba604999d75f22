"""Who has the GPUs: the actor or the engines, where they share them (cluster.placement = "colocated").

Whoever waits gives its memory back. Where each has GPUs of its own, nothing happens here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Turns:
    """Hands the GPUs over.

    Args:
        actor, engines: as cluster/ranks.py and cluster/fleet.py hold them.
        shared: whether they share GPUs.
    """

    def __init__(self, actor: Any, engines: Any, *, shared: bool) -> None:
        self._actor, self._engines, self._shared = actor, engines, shared

    def actor_turn(self) -> None:
        """The actor scores, trains or loads from here on; engines hold nothing. Fine if it is its turn already."""
        if self._shared:
            self._engines.sleep()
            self._actor.reload()

    @contextmanager
    def engine_turn(self) -> Iterator[None]:
        """A weight sync, after which the engines answer. The actor keeps its weights, and gives back the rest before
        the engines take memory for theirs: what it caches, no other process can have."""
        if self._shared:
            self._actor.offload()
            self._engines.wake("weights")
        yield
        if self._shared:
            self._engines.wake("kv_cache")
