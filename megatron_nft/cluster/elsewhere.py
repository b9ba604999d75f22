"""Arrays that the driver names and never holds: from an engine's process to the ranks, by Ray's references.

An engine keeps the experts of its answers until the driver, which gets the groups, asks for references to them: it owns
the references, so that an engine's end takes nothing along that has been handed over; the arrays lie in the object
store of the engine's node. Ranks get theirs from there, all at once, and read them where they are. Ray sends an array
of less than 100 KB along with its reference. Called by fleet.py (the engine's side), stream.py and groups/ (the
driver's), ranks.py (a rank's).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from megatron_nft.types import Elsewhere, MicroBatch, RolloutGroup, TrainSequence


@dataclass(frozen=True)
class InRay(Elsewhere):
    """In Ray's object store."""

    shape: tuple[int, ...]
    dtype: np.dtype
    reference: Any

    def load(self) -> np.ndarray:
        """Without rows if it is lost, since its node is."""
        try:
            return ray.get(self.reference)
        except RayError:
            return np.empty((0, *self.shape[1:]), self.dtype)


@dataclass(frozen=True)
class _Named(Elsewhere):
    """In an engine's process, until it hands it over; what takes its place in the group that the driver gets."""

    shape: tuple[int, ...]
    dtype: np.dtype
    key: int

    def load(self) -> np.ndarray:
        raise AssertionError("to be handed over first")


class Shelf:
    """Of an engine's process."""

    def __init__(self) -> None:
        self._arrays: dict[int, np.ndarray] = {}
        self._next = 0

    def put(self, group: RolloutGroup) -> RolloutGroup:
        """The group without its experts, which stay here."""
        if all(rollout.experts_R is None for rollout in group.rollouts):
            return group
        return replace(group, rollouts=tuple(replace(r, experts_R=self._keep(r.experts_R)) for r in group.rollouts))

    def _keep(self, array: np.ndarray) -> _Named:
        self._next += 1
        self._arrays[self._next] = array
        return _Named(array.shape, array.dtype, self._next)

    def hand_over(self, keys: Sequence[int]) -> list[np.ndarray]:
        """The arrays of these keys; they are kept no longer."""
        return [self._arrays.pop(key) for key in keys]

    def clear(self) -> None:
        """Forgets all: nobody will ask."""
        self._arrays = {}


def hand_over(group: RolloutGroup, engine: Any) -> RolloutGroup:
    """The group with references to what its engine has kept. The driver waits for nothing.

    Args:
        engine: Ray's handle.
    """
    if not (named := _named(group)):
        return group
    references = engine.hand_over.options(num_returns=len(named)).remote([array.key for array in named])
    references = references if len(named) > 1 else [references]
    rollouts = zip(group.rollouts, named, references, strict=True)
    return replace(group, rollouts=tuple(replace(r, experts_R=InRay(a.shape, a.dtype, ref)) for r, a, ref in rollouts))


def leave(group: RolloutGroup, engine: Any) -> None:
    """Nobody wants the group: its engine needs to keep nothing of it."""
    if named := _named(group):
        engine.hand_over.remote([array.key for array in named])


def _named(group: RolloutGroup) -> list[_Named]:
    return [rollout.experts_R for rollout in group.rollouts if isinstance(rollout.experts_R, _Named)]


def lend(group: RolloutGroup) -> RolloutGroup:
    """A group of this process, read from a file, with its experts in the store."""
    if not any(isinstance(rollout.experts_R, np.ndarray) for rollout in group.rollouts):
        return group
    return replace(
        group,
        rollouts=tuple(
            replace(r, experts_R=InRay(r.experts_R.shape, r.experts_R.dtype, ray.put(r.experts_R)))
            for r in group.rollouts
        ),
    )


def bring(share: Any) -> Any:
    """A rank's microbatches, in whatever lists, with the arrays in place of their references.

    One that is lost, since its node is, becomes one without rows: the tokens whose experts are known are its first 0.
    """
    far = {s.experts_R.reference: s.experts_R for m in _microbatches(share) for s in m.sequences if _is_far(s)}
    arrays = dict(zip(far, _get_all(far), strict=True)) if far else {}

    def here(part: Any) -> Any:
        if not isinstance(part, MicroBatch):
            return [here(inner) for inner in part]
        sequences = [replace(s, experts_R=arrays[s.experts_R.reference]) if _is_far(s) else s for s in part.sequences]
        return replace(part, sequences=tuple(sequences))

    return here(share) if far else share


def _microbatches(share: Any) -> Iterator[MicroBatch]:
    if isinstance(share, MicroBatch):
        yield share
    else:
        for part in share:
            yield from _microbatches(part)


def _is_far(sequence: TrainSequence) -> bool:
    return isinstance(sequence.experts_R, InRay)


def _get_all(far: Mapping[Any, InRay]) -> list[np.ndarray]:
    try:
        return ray.get(list(far))
    except RayError:
        return [array.load() for array in far.values()]
