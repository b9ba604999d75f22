"""The source of groups on real engines that are stopped, killed or too fast: groups keep coming, or an error does."""

import io
import os
import signal
import time
from contextlib import contextmanager, suppress
from copy import copy
from unittest import mock

import pytest

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.processes import ProcessLost
from megatron_nft.cluster.restarts import Restarts
from megatron_nft.config import load_config
from megatron_nft.data.prompts import PromptStream, load_prompts, load_tokenizer
from megatron_nft.groups.lengths import ExpectedTokens
from megatron_nft.groups.queue import NoMixedGroups
from megatron_nft.groups.share import MixedShare
from megatron_nft.groups.source import GroupSource
from megatron_nft.observe.report import Report
from megatron_nft.verdict.judge import Judge
from tests.e2e.test_faults import SOON_S, Cluster, kill

pytestmark = pytest.mark.e2e
GROUPS = 4


@pytest.fixture(scope="module")
def cluster(shared, tmp_path_factory):
    overrides = [f"train.groups_per_step={GROUPS}", "rollout.group_size=8", "rollout.max_concurrent=16"]
    cluster = Cluster(*overrides).on(shared)
    with Judge(cluster.config.verdict) as judge:
        cluster.judge = judge
        tokenizer = load_tokenizer(cluster.config.model.path)
        folder = tmp_path_factory.mktemp("run")
        cluster.report = Report(load_config("launch/recipes/quickstart.toml", [f"run.dir={folder}"]), io.StringIO())
        cluster.train_prompts = load_prompts(cluster.config.data.train, tokenizer, cluster.config.data).prompts
        yield cluster


@contextmanager
def sampling(cluster, fleet=None, **settings):
    """A source of its own, at work for policy 0; of some of the engines, if they are given."""
    rollout = cluster.config.rollout.model_copy(update=settings)
    verdict = cluster.config.verdict.model_copy(update={"max_unparsable": 1.0})  # some tests cut all answers off
    config = cluster.config.model_copy(update={"rollout": rollout, "verdict": verdict})
    cluster.version = 0
    cluster.sync()
    staleness = settings.get("max_staleness", 0)
    prompts = PromptStream(cluster.train_prompts, 1)
    source = GroupSource(config, prompts, fleet or cluster.engines, cluster.judge, staleness)
    try:
        source.resume(0)
        yield source
    finally:
        source.close()
        assert not source._thread.is_alive()
        cluster.engines.wait_for_starts()
        with suppress(ProcessLost):  # in the test of the end of restarts
            cluster.engines.call("forget")


def take(cluster, source, step):
    """A step's groups, with the syncs that engines which died need."""
    num_syncs = 0
    while (taken := source.take(step, cluster.report)) is None:
        source.pause()
        cluster.sync()
        source.resume(cluster.version)
        num_syncs += 1
        assert num_syncs < 5
    assert len(taken.groups) == GROUPS and all(group.is_mixed for group in taken.groups)
    return taken


def sync(cluster, source, version):
    source.trained()
    source.pause()
    cluster.version = version
    cluster.sync()
    source.resume(version)


def wait_until(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stop_at_work(source, name, pid):
    """Stops an engine that has requests, and tells them. (One that ends its last just before is let go on.)"""
    while True:
        wait_until(lambda: source._stream._asked[name])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)  # what it had sent arrives
        if asked := set(source._stream._asked[name]):
            return asked
        os.kill(pid, signal.SIGCONT)


def all_ids(*takens):
    return [group.prompt.prompt_id for taken in takens for group in taken.groups]


def test_a_full_queue_holds_the_source_up_and_is_counted(cluster):
    with sampling(cluster, max_staleness=2) as source:
        queue = source._queue
        wait_until(lambda: queue.num_ready >= queue.capacity and not queue.under_way)
        full, asked = queue.num_ready, queue._next_id
        time.sleep(2.0)
        assert queue.num_ready == full and queue._next_id == asked
        taken = [take(cluster, source, step) for step in (1, 2, 3)]
        assert taken[0].metrics["async/engine_idle_s"] >= 2.0
        assert [t.metrics["async/staleness_max"] for t in taken] == [0, 1, 2], "three steps on what policy 0 sampled"
        assert len(set(all_ids(*taken))) == 3 * GROUPS


def test_an_engine_that_is_stopped_holds_up_its_own_answers_only(cluster):
    with sampling(cluster, max_staleness=4) as source:
        first = take(cluster, source, 1)
        pid = cluster.pid("engine 1")
        stop_at_work(source, "engine 1", pid)
        try:
            taken = [take(cluster, source, step) for step in (2, 3)]
            held_up = set(source._stream._asked["engine 1"])
            assert len(held_up) > 0 and source._stream._places["engine 1"].taken < 16 + 2 * 8, (
                "a prompt is given while no more wait than a prompt's answers"
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        sync(cluster, source, 3)
        last = [take(cluster, source, step) for step in (4, 5)]
        wait_until(lambda: not held_up & source._queue.under_way.keys())
        assert len(set(all_ids(first, *taken, *last))) == 5 * GROUPS


def test_an_engine_that_hangs_is_replaced_after_its_deadline(cluster):
    with sampling(cluster, max_staleness=4, timeout_s=5.0) as source:  # far from a full queue
        first, pid, restarts = take(cluster, source, 1), cluster.pid("engine 0"), cluster.engines.link
        begun = stop_at_work(source, "engine 0", pid)
        try:
            wait_until(lambda: cluster.engines.link > restarts)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        sync(cluster, source, 1)
        assert cluster.engines.link == restarts + 1 and cluster.pid("engine 0") != pid
        taken = take(cluster, source, 2)
        wait_until(lambda: not begun & source._queue.under_way.keys())
        assert len(set(all_ids(first, taken))) == 2 * GROUPS


def test_engines_killed_at_work_are_replaced_and_their_prompts_are_answered(cluster):
    with sampling(cluster, max_staleness=2) as source:
        first = take(cluster, source, 1)
        begun, restarts = set(source._queue.under_way), cluster.engines.link
        for name in cluster.engines.names:
            kill(cluster.pid(name))
        taken = [first, *(take(cluster, source, step) for step in (2, 3))]
        assert cluster.engines.link == restarts + 2 and all(map(cluster.engines.is_ready, cluster.engines.names))
        wait_until(lambda: not begun & source._queue.under_way.keys())
        assert len(set(all_ids(*taken))) == 3 * GROUPS


def test_an_engine_killed_during_a_sync_gives_its_requests_back(cluster):
    with sampling(cluster, max_staleness=3) as source:
        taken = [take(cluster, source, 1)]
        wait_until(lambda: source._stream._asked["engine 0"])
        source.trained()
        source.pause()
        begun = set(source._queue.under_way)
        cluster.version = 1
        pid = cluster.pid("engine 0")
        with cluster.before(cluster.engines, "update", 1, lambda *_: kill(pid)):
            cluster.sync()
        source.resume(1)
        taken += [take(cluster, source, step) for step in (2, 3, 4)]
        wait_until(lambda: not begun & source._queue.under_way.keys())
        assert len(set(all_ids(*taken))) == 4 * GROUPS


def test_no_mixed_groups_is_said_with_a_remedy(cluster):
    with (
        sampling(cluster, max_staleness=1, max_answer_tokens=2, max_sampling_rounds=1) as source,
        pytest.raises(
            NoMixedGroups, match=r"step 1: \d of \d+ groups .* of their answers .* raise rollout.max_sampling"
        ),
    ):
        take(cluster, source, 1)


def test_a_sync_comes_in_between_two_decode_steps(cluster):
    with sampling(cluster, max_staleness=2) as source:
        take(cluster, source, 1)
        wait_until(lambda: source._stream.begun)
        start = time.monotonic()
        source.trained()
        source.pause()
        assert time.monotonic() - start < 2.0
        under_way = set(source._queue.under_way)
        assert not source._stream.is_working
        cluster.version = 1
        cluster.sync()
        source.resume(1)
        taken = take(cluster, source, 2)
        assert under_way and taken.metrics["async/staleness_max"] <= 2


def answers(taken):
    return [(group.prompt.prompt_id, [r.token_ids_A.tolist() for r in group.rollouts]) for group in taken.graded]


def test_one_engine_gives_the_answers_of_two_in_whatever_order_they_are_asked(cluster):
    one = copy(cluster.engines)
    one._engines = {"engine 0": cluster.engines.handle("engine 0")}
    with sampling(cluster) as source:
        of_two = take(cluster, source, 1)
    with sampling(cluster, one) as source:
        of_one = take(cluster, source, 1)
    shortest = mock.patch.object(ExpectedTokens, "of", lambda self, prompt: -len(prompt.token_ids_P))
    with shortest, sampling(cluster, one) as source:
        shortest_first = take(cluster, source, 1)
    assert answers(of_one) == answers(of_two) == answers(shortest_first)
    assert all_ids(of_one) == all_ids(of_two) == all_ids(shortest_first)


def test_a_tail_that_is_cut_leaves_no_engine_with_work(cluster):
    """One decode step more, and a sleeping engine would have an answer under way."""
    with sampling(cluster, tail="drop", max_answer_tokens=64) as source:
        take(cluster, source, 1)
        sync(cluster, source, 1)
        source._queue.share = MixedShare.known(0.3, 100)  # asks for more than it needs
        taken = take(cluster, source, 2)
        left = cluster.engines.call("advance", "rollouts", [], [], 0.0)
    assert taken.metrics["rollout/groups_cut"] > 0 and taken.metrics["rollout/cut_tokens_mean"] > 0
    assert [(groups, load.running + load.waiting) for groups, load in left] == [([], 0)] * 2


def test_a_synchronous_step_goes_on_with_the_other_engine_and_its_answers_are_the_same(cluster):
    """Each prompt is asked once more at most, and one group of it kept."""
    with sampling(cluster) as source:
        undisturbed = take(cluster, source, 1)
    with sampling(cluster) as source:
        wait_until(lambda: source._stream._asked["engine 1"])
        pid, restarts = cluster.pid("engine 1"), cluster.engines.link
        kill(pid)
        taken = take(cluster, source, 1)
        assert cluster.engines.link > restarts
        assert answers(taken) == answers(undisturbed) and all_ids(taken) == all_ids(undisturbed)
        assert taken.metrics["rollout/rounds"] == undisturbed.metrics["rollout/rounds"]


def test_restarts_without_a_step_further_end(cluster):
    """Last: an engine is missing afterwards."""
    with sampling(cluster, max_staleness=2) as source:
        take(cluster, source, 1)
        cluster.engines._restarts = Restarts(1, "engines have", "rollout.max_restarts")
        cluster.engines._restarts.count("an earlier one", 0)
        kill(cluster.pid("engine 1"))
        with pytest.raises(
            ClusterError, match=r"(?s)engine 1 died: .*started again 1 times in a row .*rollout.max_rest"
        ):
            for step in range(2, 9):
                take(cluster, source, step)
