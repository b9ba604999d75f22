"""How much a driver says in a step: messages and bytes grow as the ranks and engines do, and no faster.

The run's own Actors, Fleet, turns and sync, on the played ranks of benchmarks/scale; instead of Ray something that
counts. What that takes of a real Ray at 128 to 2,048 GPUs: benchmarks/scale.
"""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.scale.cluster import RECIPE, make_model
from benchmarks.scale.ranks import PlayedRanks, stage_buckets
from megatron_nft.cluster import fleet, processes, ranks
from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.ranks import Actors
from megatron_nft.cluster.turns import Turns
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.types import TrainSequence
from megatron_nft.weights.sync import sync_weights


class Put:
    """What a reference of Ray's stands for."""

    def __init__(self, value):
        self.value = value


class Sent:
    """Counts calls, and the bytes of what goes and comes with them, as Ray pickles it."""

    def __init__(self):
        self.messages = self.num_bytes = 0

    def handle(self, call):
        def remote(verb, arguments, timeout_s):
            self.messages += 1
            if isinstance(arguments, Put):
                arguments = arguments.value
            else:
                self.num_bytes += len(pickle.dumps(arguments))
            answer = call(verb, arguments)
            self.num_bytes += len(pickle.dumps(answer))
            return Put(answer)

        return SimpleNamespace(call=SimpleNamespace(remote=remote))

    def put(self, value):
        self.num_bytes += len(pickle.dumps(value))
        return Put(value)

    def ray(self):
        def get(refs):
            return [ref.value for ref in refs] if isinstance(refs, list) else refs.value

        return SimpleNamespace(put=self.put, get=get, wait=lambda refs, **_: (refs, []))


class PlayedActors(Actors):
    def _start(self):
        played = PlayedRanks(self._config)
        return {
            f"actor rank {rank}": self._sent.handle(
                lambda verb, arguments, rank=rank: played.call(rank, verb, arguments)
            )
            for rank in range(self._config.actor.world_size)
        }


class PlayedEngines(Fleet):
    def _start(self, name):
        return self._sent.handle(lambda verb, arguments: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "32b"
    make_model(folder)
    return folder


def sequences(count=64):
    draw = np.random.default_rng(0)
    for length in draw.integers(50, 400, count):
        yield TrainSequence(
            token_ids_T=np.arange(length + 20, dtype=np.int32), num_prompt_tokens=20, verdict=1.0, correct_rate=0.5,
            engine_logprobs_A=np.zeros(length, np.float32),
        )  # fmt: skip


def step(model, gpus, monkeypatch, *overrides):
    """Score, train, hand over and sync on a cluster of so many GPUs: what was sent by stage."""
    given = [f'model.path="{model}"', f"actor.dp={gpus // 16}", f"rollout.engines={gpus // 4}", *overrides]
    config, sent = load_config(RECIPE, given), Sent()
    for module in (processes, ranks, fleet):
        monkeypatch.setattr(module, "ray", sent.ray())
    for kind in (PlayedActors, PlayedEngines):
        monkeypatch.setattr(kind, "_sent", sent, raising=False)
    actors, engines = PlayedActors(config, None), PlayedEngines(config, None, starts_empty=True)
    turns = Turns(actors, engines, shared=config.is_colocated)
    batch = pack([[s] for s in sequences()], num_updates=4, dp=config.actor.dp, tokens_per_microbatch=2000)
    found = {}

    def stage(name, work):
        before = sent.messages, sent.num_bytes
        result = work()
        found[name] = (sent.messages - before[0], sent.num_bytes - before[1])
        return result

    stage("first sync", lambda: sync_weights(actors, engines, 0, turns.engine_turn))  # asks for names and rounds
    stage("turn", turns.actor_turn)
    batch = stage("score", lambda: actors.score(batch))
    stage("train", lambda: actors.train_step(batch))
    stage("sync", lambda: sync_weights(actors, engines, 1, turns.engine_turn))
    return found


SPLIT = ("cluster.placement=split",)


@pytest.mark.parametrize("overrides", [(), SPLIT], ids=["colocated", "split"])
def test_messages_grow_as_the_ranks_do(overrides, model, monkeypatch):
    at = {gpus: step(model, gpus, monkeypatch, *overrides) for gpus in (16, 32, 64)}
    for stage in at[16]:
        first, second = (at[2 * gpus][stage][0] - at[gpus][stage][0] for gpus in (16, 32))
        assert second <= 2 * first, f"{stage}: {json.dumps({gpus: found[stage] for gpus, found in at.items()})}"


@pytest.mark.parametrize("overrides", [(), SPLIT], ids=["colocated", "split"])
def test_bytes_grow_as_the_ranks_do(overrides, model, monkeypatch):
    at = {gpus: step(model, gpus, monkeypatch, *overrides) for gpus in (32, 64, 128)}
    for stage in at[32]:
        assert at[128][stage][1] <= 4.2 * at[32][stage][1], f"{stage}: {at}"


def test_ranks_that_send_nothing_are_not_asked_to(model, monkeypatch):
    """By a broadcast the first replica's ranks send; the others hold the same weights."""
    messages = {gpus: step(model, gpus, monkeypatch, *SPLIT)["sync"][0] for gpus in (32, 128)}
    config = load_config(RECIPE, [f'model.path="{model}"', *SPLIT])
    rounds = len(stage_buckets(config, read_hf_config(model), 0))
    assert messages[128] - messages[32] == (rounds + 2) * (128 - 32) // 4, "to engines"
