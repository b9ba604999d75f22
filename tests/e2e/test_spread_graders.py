"""Grading on four nodes of one machine: the same verdicts as one pool's, and what hangs or dies costs its node only."""

import time

import pytest
import ray
from ray.cluster_utils import Cluster

from megatron_nft.cluster import graders
from megatron_nft.cluster.graders import SpreadPool, spread_pool
from megatron_nft.cluster.nodes import living_nodes
from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.judge import Judge

pytestmark = pytest.mark.e2e
NODES = 4


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_four_nodes_grade_as_one_does(cluster, monkeypatch):
    config = VerdictConfig(workers=NODES, deadline_s=2.0)
    assert spread_pool(VerdictConfig(workers=1)) is None, "one node is enough"
    pool = SpreadPool(config, [node.ray_id for node in living_nodes()])
    answers = [rf"\boxed{{\frac{{{2 * n + 1}\sqrt{{2}}}}{{2}}}}" for n in range(200)]
    golds = [rf"{n}\sqrt{{2}} + \frac{{\sqrt{{2}}}}{{2}}" if n % 3 else str(n) for n in range(200)]
    answers[50] = r"\boxed{\sqrt{2}^{9^{9^{9}}}}"
    with Judge(config, pool) as judge:
        judge.warm_up()
        start = time.perf_counter()
        verdicts = judge.judge_answers(answers, golds, ["math"] * 200)
        assert time.perf_counter() - start < 60
        expected = ["right" if n % 3 else "wrong" for n in range(200)]
        expected[50] = "timeout"
        assert [v.kind for v in verdicts] == expected

        ray.kill(pool._actors[-1])  # a node is lost: its share goes to the others
        again = judge.judge_answers(
            [r"\boxed{\sqrt{8}}"] * 40, [rf"2\sqrt{{2}} + {n} - {n}" for n in range(40)], ["m"] * 40
        )
        assert [v.kind for v in again] == ["right"] * 40
        assert len(pool._actors) == NODES - 1

        monkeypatch.setattr(graders, "longest_wait", lambda *_: 4.0)
        monkeypatch.setattr(graders, "ANSWER_S", 1.0)
        pool._actors[0].__ray_call__.remote(lambda _: time.sleep(1000))  # a node hangs: it is not waited for
        again = judge.judge_answers(
            [r"\boxed{\sqrt{8}}"] * 9, [rf"2\sqrt{{2}} + {n} - {n}" for n in range(50, 59)], ["m"] * 9
        )
        assert [v.kind for v in again] == ["right"] * 9
        assert len(pool._actors) == NODES - 2
