"""Whatever dies or lies during a weight sync or a rollout: recovery, or a clear error soon; never half-new weights.

Two Megatron ranks and two vLLM engines, real ones; processes are killed as the kernel would.
"""

import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.ranks import Actors
from megatron_nft.cluster.stream import RequestStream, sample_groups
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from megatron_nft.data.prompts import load_prompts, load_tokenizer
from megatron_nft.observe.batches import load_batch
from megatron_nft.rollout.api import EngineError, Sampling
from megatron_nft.run.canary import CanaryError, check_canary
from megatron_nft.run.parts import Processes, begin_build
from megatron_nft.weights.sync import sync_weights
from tests.conftest import TAKES_MINUTES

pytestmark = pytest.mark.e2e
ASSETS = Path("tests/assets/quickstart")
SOON_S = 60.0
"""To find a death and start an engine again, on two busy cores."""


class Cluster:
    """Actors and engines with a version that counts up."""

    def __init__(self, *overrides):
        self.config = load_config(
            "launch/recipes/quickstart.toml",
            ["rollout.engines=2", "weights.bucket_mib=1", "weights.timeout_s=10", "optimizer.learning_rate=1e-3",
             "optimizer.warmup_updates=0", "rollout.max_restarts=20", *overrides],
        )  # fmt: skip
        tokenizer = load_tokenizer(self.config.model.path)
        self.prompts = load_prompts(self.config.data.held_out, tokenizer, self.config.data).prompts[:24]
        self.batch = pack(load_batch(ASSETS / "batch.npz"), num_updates=2, dp=1, tokens_per_microbatch=4096)
        self.version = 0

    def on(self, shared):
        """Processes that are shared."""
        self.actors, self.engines = shared.serve(self.config)
        return self

    @contextmanager
    def alone(self):
        """Processes of its own."""
        with ray_cluster(self.config) as placement:
            self.actors = Actors(self.config, placement)
            self.engines = Fleet(self.config, placement, starts_empty=True)
            for pending in begin_build(Processes(actors=self.actors, engines=self.engines), shared=False):
                pending.wait()
            yield self

    def sync(self):
        return sync_weights(self.actors, self.engines, self.version)

    def train(self):
        self.actors.train_step(self.batch)
        self.version += 1

    def answers(self):
        """Sampled answers, whose seeds make them the same each time."""
        sampling = Sampling(group_size=4, temperature=1.0, max_answer_tokens=48, seed=5)
        groups = sample_groups(self.engines, self.prompts, sampling, self.config.rollout, refill=self.sync)
        assert {r.policy_version for g in groups for r in g.rollouts} == {self.version}
        return [(r.token_ids_A.tolist(), r.engine_logprobs_A.tolist()) for g in groups for r in g.rollouts]

    def pid(self, name):
        """Of "engine N" or "actor rank N"."""
        import ray

        process = (self.engines._engines | self.actors._ranks)[name]
        return ray.get(process.__ray_call__.remote(lambda _: os.getpid()))

    @contextmanager
    def before(self, thing, verb, number, action):
        """Does `action` as soon as `verb` is called for the `number`th time; what it returns is handed on, if
        anything."""
        original, calls = getattr(thing, verb), 0

        def spoilt(*arguments):
            nonlocal calls
            calls += 1
            changed = action(*arguments) if calls == number else None
            return original(*(arguments if changed is None else changed))

        setattr(thing, verb, spoilt)
        try:
            yield
        finally:
            setattr(thing, verb, original)
        assert calls >= number


def kill(pid):
    os.kill(pid, signal.SIGKILL)


@TAKES_MINUTES
def test_an_engine_of_two_workers_leaves_none_behind_and_restarts_end():
    with Cluster("rollout.engines=1", "rollout.tp=2", "actor.tp=1", "rollout.max_restarts=1").alone() as cluster:
        cluster.train()
        cluster.sync()
        before = cluster.answers()
        workers = psutil.Process(cluster.pid("engine 0")).children(recursive=True)
        assert len(workers) >= 2
        with cluster.before(cluster.engines, "update", 1, lambda *_: kill(cluster.pid("engine 0"))):
            cluster.sync()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, "the killed engine's workers are still there"
        assert cluster.answers() == before
        with (
            cluster.before(cluster.engines, "update", 1, lambda *_: kill(cluster.pid("engine 0"))),
            pytest.raises(ClusterError, match=r"(?s)engine 0 died: .*engines have been started again 1 times in a row"),
        ):
            cluster.sync()


@pytest.fixture(scope="module")
def cluster(request, shared):
    checksums = f"weights.checksums={str(request.param == 'shared_memory').lower()}"
    cluster = Cluster(f"weights.carrier={request.param}", checksums).on(shared)
    cluster.train()
    cluster.sync()
    return cluster


def by(*carriers, at_night=()):
    """The `cluster` of these carriers."""
    params = [*carriers, *(pytest.param(carrier, marks=TAKES_MINUTES) for carrier in at_night)]
    return pytest.mark.parametrize("cluster", params, indirect=True, scope="module")


def assert_same_answers(answers, others):
    """Tokens exactly; log-probs up to the rounding of batches of other sizes."""
    assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in others]
    for (_, logprobs), (_, other) in zip(answers, others, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(other), rtol=0, atol=1e-4)


@by("shared_memory", at_night=["collective"])
def test_engine_killed_while_it_generates_is_replaced_and_no_answer_is_lost(cluster, monkeypatch):
    """The other answers its prompts meanwhile; it has weights again once a sync has come."""
    before, restarts = cluster.answers(), cluster.engines.link
    pid, polls = cluster.pid("engine 1"), 0
    original = RequestStream.poll

    def killing(stream, wait_s):
        nonlocal polls
        polls += 1
        if polls == 2:
            assert stream._asked["engine 1"], "it is at work"
            kill(pid)
        return original(stream, wait_s)

    monkeypatch.setattr(RequestStream, "poll", killing)
    start = time.monotonic()
    assert_same_answers(cluster.answers(), before)
    assert time.monotonic() - start < SOON_S
    cluster.sync()
    assert cluster.engines.link == restarts + 1 and cluster.pid("engine 1") != pid
    assert cluster.engines.is_ready("engine 1")


def assert_replaced_in_a_sync(cluster, verb, number):
    """An engine that is killed when `verb` is called for the `number`th time; all have the new weights afterwards."""
    old = cluster.answers()
    cluster.train()
    pid, start = cluster.pid("engine 0"), time.monotonic()
    with cluster.before(cluster.engines, verb, number, lambda *_: kill(pid)):
        metrics = cluster.sync()
    assert time.monotonic() - start < SOON_S
    assert metrics["weights/buckets"] > 2
    new = cluster.answers()
    assert [tokens for tokens, _ in new] != [tokens for tokens, _ in old]
    cluster.sync()  # undisturbed, the same weights
    assert cluster.answers() == new


@by("shared_memory", "collective")
def test_engine_killed_while_it_takes_a_bucket_is_replaced_and_all_have_the_new_weights(cluster):
    assert_replaced_in_a_sync(cluster, "update", 2)


@by("shared_memory")
def test_so_is_one_killed_at_the_end_of_a_sync(cluster):
    assert_replaced_in_a_sync(cluster, "finish_update", 1)


@by(at_night=["shared_memory"])
def test_so_is_one_killed_at_its_beginning(cluster):
    assert_replaced_in_a_sync(cluster, "start_update", 1)


def without(manifests, name):
    tensors = {key: spec for key, spec in manifests[0].tensors.items() if key != name}
    return ([replace(manifests[0], tensors=tensors)],)


def reshaped(manifests, name):
    spec = manifests[0].tensors[name]
    other = replace(spec, shape=(spec.shape[0] // 2, *spec.shape[1:]))
    return ([replace(manifests[0], tensors=manifests[0].tensors | {name: other})],)


def flipped(manifests):
    path, spec = manifests[0].place["path"], next(iter(manifests[0].tensors.values()))
    with open(path, "r+b") as file:
        file.seek(spec.offset)
        byte = file.read(1)
        file.seek(spec.offset)
        file.write(bytes([byte[0] ^ 1]))


BIAS = "model.layers.0.self_attn.q_proj.bias"


@by("shared_memory", "collective")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda manifests: without(manifests, BIAS), rf"missing \['{BIAS}'\]"),
        (lambda manifests: reshaped(manifests, BIAS), rf"bucket \d+ of stage 0: {BIAS} has shape"),
        (flipped, r"bucket \d+ of stage 0 has checksum .* its bytes changed on the way"),
    ],
    ids=["missing tensor", "wrong shape", "corrupted"],
)
def test_a_spoilt_bucket_is_refused_and_the_next_sync_mends_it(cluster, spoil, says):
    if spoil is flipped and cluster.config.carrier != "shared_memory":
        pytest.skip("checksums are for shared memory; a network has its own")
    before = cluster.answers()

    def spoil_that_bucket(manifests):
        return spoil(manifests) if BIAS in manifests[0].tensors else None

    original = cluster.engines.update
    cluster.engines.update = lambda manifests: original(*(spoil_that_bucket(manifests) or (manifests,)))
    try:
        with pytest.raises(EngineError, match=says):
            cluster.sync()
    finally:
        cluster.engines.update = original
    with pytest.raises(EngineError, match="refusing to generate"):
        cluster.answers()
    cluster.sync()
    assert cluster.answers() == before


@by("shared_memory")
def test_the_canary_names_an_engine_with_other_weights_than_the_actor(cluster):
    config = cluster.config.model_copy(
        update={"weights": cluster.config.weights.model_copy(update={"canary_gap": 1e-3})}
    )
    gap = check_canary(cluster.actors, cluster.engines, cluster.prompts[0], config)["weights/canary_gap"]
    assert gap < 1e-4
    cluster.train()
    with pytest.raises(CanaryError, match=r"canary: engine \d's log-probs are .* weights.canary_gap is 0.001"):
        check_canary(cluster.actors, cluster.engines, cluster.prompts[0], config)
    cluster.sync()
    check_canary(cluster.actors, cluster.engines, cluster.prompts[0], config)


@by("shared_memory", "collective")
def test_a_hung_engine_is_named_within_the_deadline(cluster, request):
    if cluster.config.carrier == "collective" and not request.config.getoption("--all"):
        pytest.skip("the deadline is the driver's, whatever the carrier; with --all")
    pid, start = cluster.pid("engine 1"), time.monotonic()
    with (
        cluster.before(cluster.engines, "update", 2, lambda *_: os.kill(pid, signal.SIGSTOP)),
        pytest.raises(ClusterError, match=r"load bucket 1 of stage 0: no answer from .*engine 1 within 10 s"),
    ):
        cluster.sync()
    assert 10 <= time.monotonic() - start < SOON_S
    os.kill(pid, signal.SIGCONT)
    time.sleep(1.0)
    cluster.sync()
    cluster.answers()


@by("shared_memory", "collective")
def test_a_trainer_rank_killed_mid_bucket_is_named_and_nothing_is_left(cluster):
    """Last: the cluster is of no use to these tests afterwards."""
    pid, start = cluster.pid("actor rank 1"), time.monotonic()
    with (
        cluster.before(cluster.engines, "update", 2, lambda *_: kill(pid)),
        pytest.raises(ClusterError, match=r"send bucket \d of each stage: actor rank 1 died"),
    ):
        cluster.sync()
    with pytest.raises(EngineError, match="refusing to generate"):
        cluster.answers()
    assert time.monotonic() - start < SOON_S
