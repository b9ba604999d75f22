"""A recipe against the nodes of a job: what does not fit is refused with the figures."""

import pytest

from megatron_nft.cluster.nodes import ClusterError, Node, _natural
from megatron_nft.cluster.placement import check_room, ranks_per_block
from megatron_nft.config import load_config


def check(config, nodes):
    check_room(config, nodes, config.actor.world_size)


def nodes(*gpus, cpus=64):
    return [
        Node(name=f"n{i}", ray_id=str(i), address=f"10.0.0.{i}", cpus=cpus, gpus=count)
        for i, count in enumerate(gpus, start=1)
    ]


def recipe(*overrides):
    """Two key/value heads: tp 1 or 2."""
    return load_config("launch/recipes/quickstart.toml", ["cluster.device=cuda", "rollout.engines=1", *overrides])


def test_what_fits():
    check(recipe("actor.tp=2", "actor.dp=7", "rollout.engines=2"), nodes(8, 8))
    check(recipe("actor.tp=2", "actor.dp=8", "rollout.engines=16", "cluster.placement=colocated"), nodes(8, 8))
    check(recipe("actor.tp=1", "actor.dp=3", "rollout.engines=1"), nodes(1, 1, 1, 1))
    check(recipe("actor.tp=2", "actor.dp=4", "cluster.placement=colocated"), nodes(0, 8))  # a head without GPUs


def test_more_gpus_than_the_job_has():
    with pytest.raises(
        ClusterError, match=r"asks for 17 GPUs \(tp 2 x pp 1 x dp 8 = 16 ranks and .* = 1 for engines\)"
    ):
        check(recipe("actor.tp=2", "actor.dp=8"), nodes(8, 8))
    with pytest.raises(ClusterError, match=r"Ray has 16 on 2 nodes \(n1 8, n2 8\); submit the job with more nodes"):
        check(recipe("actor.tp=2", "actor.dp=8"), nodes(8, 8))


def test_a_tensor_parallel_group_across_nodes():
    with pytest.raises(ClusterError, match=r"actor.tp = 2 needs 2 GPUs of one node, .*raise actor.pp or actor.dp"):
        check(recipe("actor.tp=2"), nodes(1, 1, 1, 1))
    with pytest.raises(ClusterError, match=r"rollout.tp = 2 needs 2 GPUs of one node"):
        check(recipe("actor.tp=1", "rollout.tp=2"), nodes(1, 1, 1, 1))


def test_groups_that_leave_gpus_over_on_every_node():
    with pytest.raises(
        ClusterError, match=r"needs 4 times 2 GPUs of one node, .* is 3 times; choose a tp that divides"
    ):
        check(recipe("actor.tp=2", "actor.dp=4", "cluster.placement=colocated"), nodes(3, 3, 3))


def test_shared_memory_is_for_one_machine():
    config = load_config("launch/recipes/quickstart.toml", ["actor.tp=1", "actor.dp=2", "rollout.engines=1"])
    check(config, nodes(0, cpus=3))
    with pytest.raises(ClusterError, match=r'set weights\.carrier="collective"'):
        check(config, nodes(0, 0, 0, cpus=1))


def test_engines_on_the_ranks_gpus_lie_on_one_node_too():
    assert ranks_per_block(recipe("actor.tp=2", "rollout.tp=1")) == 2
    assert ranks_per_block(recipe("actor.tp=1", "rollout.tp=2", "actor.dp=4")) == 1
    assert ranks_per_block(recipe("actor.tp=1", "rollout.tp=2", "actor.dp=4", "cluster.placement=colocated")) == 2


def test_n2_comes_before_n10():
    assert sorted(["n10", "n2", "gpu-b1", "gpu-a12", "n1"], key=_natural) == ["gpu-a12", "gpu-b1", "n1", "n2", "n10"]


def test_engines_alone_need_no_room_for_ranks():
    check_room(recipe("actor.tp=2", "actor.dp=8", "rollout.engines=8"), nodes(8), 0)
    with pytest.raises(ClusterError, match=r"no actor and rollout.engines x rollout.tp = 9"):
        check_room(recipe("actor.tp=2", "rollout.engines=9"), nodes(8), 0)
