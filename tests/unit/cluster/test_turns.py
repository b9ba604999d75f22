"""Who has GPUs that actor and engines share: one gives its memory back before the other takes it."""

import pytest

from megatron_nft.cluster.turns import Turns


class Recorder:
    """Says what it was told, with its name."""

    def __init__(self, name, told):
        self._name, self._told = name, told

    def __getattr__(self, verb):
        return lambda *arguments: self._told.append(" ".join([self._name, verb, *arguments]))


@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_given_back_before_it_is_taken(shared):
    told = []
    turns = Turns(Recorder("actor", told), Recorder("engines", told), shared=shared)
    turns.actor_turn()
    with turns.engine_turn():
        told.append("sync")
    expected = [
        *("engines sleep", "actor reload"),
        *("actor offload", "engines wake weights", "sync", "engines wake kv_cache"),
    ]
    assert told == (expected if shared else ["sync"])
