"""The producer on real engines that are stopped, killed or too fast: groups keep coming, or a clear error does."""

import os
import signal
import time
from contextlib import contextmanager, suppress

import pytest
from megatron_nft.groups.sampling import NoMixedGroups

from megatron_nft.data.prompts import PromptStream, load_prompts, load_tokenizer
from megatron_nft.groups.source import Producer
from megatron_nft.verdict.judge import Judge
from tests.e2e.test_faults import SOON_S, Cluster, kill

pytestmark = pytest.mark.e2e
GROUPS = 4


@pytest.fixture(scope="module")
def cluster():
    overrides = [f"train.groups_per_step={GROUPS}", "rollout.group_size=8", "rollout.max_concurrent=16"]
    with Cluster(*overrides).running() as cluster, Judge(cluster.config.verdict) as judge:
        cluster.judge = judge
        tokenizer = load_tokenizer(cluster.config.model.path)
        cluster.train_prompts = load_prompts(cluster.config.data.train, tokenizer, cluster.config.data).prompts
        yield cluster


@contextmanager
def producing(cluster, **settings):
    """A producer of its own, at work for policy 0."""
    rollout = cluster.config.rollout.model_copy(update=settings)
    config = cluster.config.model_copy(update={"rollout": rollout})
    cluster.version = 0
    cluster.sync()
    producer = Producer(config, PromptStream(cluster.train_prompts, 1), cluster.engines, cluster.judge)
    try:
        producer.resume(0)
        yield producer
    finally:
        producer.close()
        assert not producer._thread.is_alive()
        for name in cluster.engines.names:  # what they still have under way
            asked = list(producer._stream._asked[name])
            cluster.engines.handle(name).call.remote("advance", ([], asked, 0.0), 60.0)


def take(cluster, producer, step):
    """A step's groups, with the syncs that engines which died need."""
    num_syncs = 0
    while (taken := producer.take(step, lambda done, total: None)) is None:
        producer.pause()
        producer.wait_for_engines()
        cluster.sync()
        producer.resume(cluster.version)
        num_syncs += 1
        assert num_syncs < 5
    assert len(taken.groups) == GROUPS and all(group.is_mixed for group in taken.groups)
    return taken


def sync(cluster, producer, version):
    producer.trained()
    producer.pause()
    producer.wait_for_engines()
    cluster.version = version
    cluster.sync()
    producer.resume(version)


def wait_until(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def all_ids(*takens):
    return [group.prompt.prompt_id for taken in takens for group in taken.groups]


def test_a_full_queue_holds_the_producer_up_and_is_counted(cluster):
    with producing(cluster, max_staleness=2) as producer:
        queue = producer._queue
        wait_until(lambda: queue.num_ready >= queue.capacity and not queue.under_way)
        full, asked = queue.num_ready, queue._next_id
        time.sleep(2.0)
        assert queue.num_ready == full and queue._next_id == asked
        taken = [take(cluster, producer, step) for step in (1, 2, 3)]
        assert taken[0].metrics["async/engine_idle_s"] >= 2.0
        assert [t.metrics["async/staleness_max"] for t in taken] == [0, 1, 2], "three steps on what policy 0 sampled"
        assert len(set(all_ids(*taken))) == 3 * GROUPS


def test_an_engine_that_is_stopped_holds_up_its_own_answers_only(cluster):
    with producing(cluster, max_staleness=4) as producer:
        first = take(cluster, producer, 1)
        pid = cluster.pid("engine 1")
        wait_until(lambda: producer._stream._asked["engine 1"])
        os.kill(pid, signal.SIGSTOP)
        try:
            taken = [take(cluster, producer, step) for step in (2, 3)]
            held_up = set(producer._stream._asked["engine 1"])
            assert 0 < len(held_up) <= 3, "no more than it works on, and one"
        finally:
            os.kill(pid, signal.SIGCONT)
        sync(cluster, producer, 3)
        last = [take(cluster, producer, step) for step in (4, 5)]
        wait_until(lambda: not held_up & producer._queue.under_way.keys())
        assert len(set(all_ids(first, *taken, *last))) == 5 * GROUPS


def test_an_engine_that_hangs_is_replaced_after_its_deadline(cluster):
    with producing(cluster, max_staleness=1, timeout_s=5.0) as producer:
        first, pid, restarts = take(cluster, producer, 1), cluster.pid("engine 0"), cluster.engines.link
        wait_until(lambda: producer._stream._asked["engine 0"])
        os.kill(pid, signal.SIGSTOP)
        begun = set(producer._stream._asked["engine 0"])
        try:
            wait_until(lambda: cluster.engines.link > restarts)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        sync(cluster, producer, 1)
        assert cluster.engines.link == restarts + 1 and cluster.pid("engine 0") != pid
        taken = take(cluster, producer, 2)
        wait_until(lambda: not begun & producer._queue.under_way.keys())
        assert len(set(all_ids(first, taken))) == 2 * GROUPS


def test_engines_killed_at_work_are_replaced_and_their_prompts_are_answered(cluster):
    with producing(cluster, max_staleness=2) as producer:
        first = take(cluster, producer, 1)
        begun, restarts = set(producer._queue.under_way), cluster.engines.link
        for name in cluster.engines.names:
            kill(cluster.pid(name))
        taken = [first, *(take(cluster, producer, step) for step in (2, 3))]
        assert cluster.engines.link == restarts + 2 and not producer._stream.needs_weights
        wait_until(lambda: not begun & producer._queue.under_way.keys())
        assert len(set(all_ids(*taken))) == 3 * GROUPS


def test_an_engine_killed_during_a_sync_gives_its_requests_back(cluster):
    with producing(cluster, max_staleness=3) as producer:
        taken = [take(cluster, producer, 1)]
        wait_until(lambda: producer._stream._asked["engine 0"])
        producer.trained()
        producer.pause()
        begun = set(producer._queue.under_way)
        cluster.version = 1
        pid = cluster.pid("engine 0")
        with cluster.before(cluster.engines, "update", 1, lambda *_: kill(pid)):
            cluster.sync()
        producer.resume(1)
        taken += [take(cluster, producer, step) for step in (2, 3, 4)]
        wait_until(lambda: not begun & producer._queue.under_way.keys())
        assert len(set(all_ids(*taken))) == 4 * GROUPS


def test_no_mixed_groups_is_said_with_a_remedy(cluster):
    with (
        producing(cluster, max_staleness=1, temperature=1e-4, max_sampling_rounds=1) as producer,
        pytest.raises(
            NoMixedGroups, match=r"step 1: \d of \d+ groups .* after 1 rounds, .* raise rollout.max_sampling"
        ),
    ):
        take(cluster, producer, 1)


def test_a_sync_comes_in_between_two_decode_steps(cluster):
    with producing(cluster, max_staleness=2) as producer:
        take(cluster, producer, 1)
        wait_until(lambda: producer._stream.begun)
        start = time.monotonic()
        producer.trained()
        producer.pause()
        assert time.monotonic() - start < 2.0
        under_way = set(producer._queue.under_way)
        assert not producer._stream.is_working
        cluster.version = 1
        cluster.sync()
        producer.resume(1)
        taken = take(cluster, producer, 2)
        assert under_way and taken.metrics["async/staleness_max"] <= 2
