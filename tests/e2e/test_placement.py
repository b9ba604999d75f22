"""Ray of several nodes with GPUs that are names only: tensor-parallel groups and shared GPUs lie where they must."""

import signal

import pytest
import ray
from ray.cluster_utils import Cluster

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.placement import _node_and_gpu, ray_cluster
from megatron_nft.config import load_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def two_nodes():
    on_sigterm = signal.getsignal(signal.SIGTERM)
    cluster = Cluster()
    for name in ("n1", "n2"):
        cluster.add_node(
            num_cpus=4, num_gpus=4, node_name=name, object_store_memory=80_000_000, include_dashboard=False
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
    cluster.shutdown()
    signal.signal(signal.SIGTERM, on_sigterm)  # a node of Ray puts in its own


def recipe(*overrides):
    return load_config("launch/recipes/quickstart.toml", ["cluster.device=cuda", "actor.tp=2", *overrides])


def places(options):
    return ray.get([_node_and_gpu.options(**each).remote() for each in options])


def test_colocated_ranks_and_engines_share_gpus_of_one_node(two_nodes):
    config = recipe("actor.dp=4", "rollout.engines=4", "rollout.tp=2", "cluster.placement=colocated")
    with ray_cluster(config) as placement:
        ranks = places(placement.actor_options(rank) for rank in range(8))
        assert len(set(ranks)) == 8, "a GPU each"
        nodes = [node for node, _ in ranks]
        assert nodes == [nodes[0]] * 4 + [nodes[4]] * 4 and nodes[0] != nodes[4]
        for index in range(4):
            visible = placement.engine_environment(index)["CUDA_VISIBLE_DEVICES"]
            assert visible == ",".join(gpu for _, gpu in ranks[2 * index : 2 * index + 2])


def test_split_groups_lie_on_one_node(two_nodes):
    with ray_cluster(recipe("actor.dp=3", "rollout.engines=1", "rollout.tp=2")) as placement:
        nodes = [node for node, _ in places(placement.actor_options(rank) for rank in range(6))]
        assert all(nodes[rank] == nodes[rank + 1] for rank in (0, 2, 4)) and len(set(nodes)) == 2


def test_more_gpus_than_there_are(two_nodes):
    with (
        pytest.raises(ClusterError, match=r"asks for 9 GPUs .* Ray has 8 on 2 nodes \(n1 4, n2 4\)"),
        ray_cluster(recipe("actor.dp=4", "rollout.engines=1")),
    ):
        pass
