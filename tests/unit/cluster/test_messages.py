"""How much a driver says in a step: messages and bytes grow as the ranks and engines do, and no faster.

The run's own Actors, Fleet, turns and sync, on the played ranks of benchmarks/scale; instead of Ray something that
counts. What that takes of a real Ray at 128 to 2,048 GPUs: benchmarks/scale.
"""

import json
import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.scale.cluster import RECIPE, make_model
from benchmarks.scale.ranks import PlayedRanks, stage_buckets
from megatron_nft.cluster import fleet, processes, ranks, stream
from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.processes import Pending
from megatron_nft.cluster.ranks import Actors
from megatron_nft.cluster.stream import RequestStream
from megatron_nft.cluster.turns import Turns
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.rollout.api import Load, Sampling, requests_of
from megatron_nft.types import Prompt, TrainSequence
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
    later = stage("score", lambda: actors.score_later(batch))
    _, scored = stage("train", lambda: actors.train_step(later))
    assert all(s.old_logprobs_A is not None for s in scored.sequences)
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


class ReadyFleet:
    """Engines that are never lost; a call of each is answered when it is asked to."""

    def __init__(self, count):
        self.names = [f"engine {number}" for number in range(count)]
        self.calls = []
        self._handle = SimpleNamespace(call=SimpleNamespace(remote=self._call))

    def _call(self, verb, arguments, timeout_s):
        self.calls.append(Put(None))
        return self.calls[-1]

    def handle(self, name):
        return self._handle

    def is_ready(self, name):
        return True


def seconds_of_a_turn(count, monkeypatch):
    """Of the driver, when one engine of so many has answered and gets its next call."""

    def wait(refs, num_returns=1, timeout=None):
        return [ref for ref in refs if ref.value is not None][:num_returns], []

    monkeypatch.setattr(stream, "ray", SimpleNamespace(wait=wait, get=lambda ref: ref.value))
    fleet = ReadyFleet(count)
    asked = RequestStream(fleet, "rollouts", answers_at_once=4, timeout_s=1e6)
    prompt = Prompt(
        prompt_id="p", text="", token_ids_P=np.zeros(1, np.int32), ground_truth="", data_source="", extra_info={}
    )
    sampling = Sampling(group_size=2, temperature=1.0, max_answer_tokens=1, seed=0)
    asked.submit(requests_of([prompt] * 3 * count, sampling))
    asked.poll(0.0)
    taken = []
    for turn in range(40):
        fleet.calls.pop(turn * 7919 % len(fleet.calls)).value = ([], Load(seconds=0.0, running=1))
        begun = time.process_time()
        asked.poll(0.0)
        taken.append(time.process_time() - begun)
    assert len(fleet.calls) == count - 1, "each is called again in the next turn"
    return min(taken)


def test_a_turn_of_the_stream_costs_as_much_as_there_are_engines(monkeypatch):
    few, many = (min(seconds_of_a_turn(count, monkeypatch) for _ in range(3)) for count in (32, 512))
    assert many < 16 * 2 * few, "16 times as many engines; with the square of them it is 100 times as much"


def test_answers_that_are_there_are_taken_at_once(monkeypatch):
    """Not one look for each, which are as many looks at as many answers."""
    looks = []

    def wait(refs, num_returns=1, timeout=None):
        looks.append(len(refs))
        return refs[:num_returns], refs[num_returns:]

    monkeypatch.setattr(processes, "ray", SimpleNamespace(wait=wait, get=lambda refs: [ref.value for ref in refs]))
    refs = {f"actor rank {rank}": Put(rank) for rank in range(500)}
    assert Pending("ping", refs, 60.0, {}).wait() == list(range(500))
    assert looks == [500, 499]
