"""When a run that loses processes gives up."""

import pytest

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.restarts import Restarts

LOST = "train_step: actor rank 1 died"


def make(limit):
    return Restarts(limit, "all ranks have", "cluster.max_restarts")


def test_a_step_further_than_ever_ends_the_row():
    restarts = make(2)
    for step in (0, 0, 3, 1, 4, 4, 5):
        restarts.count(LOST, step)
    restarts.count(LOST, 5)
    with pytest.raises(ClusterError):
        restarts.count(LOST, 5)


def test_the_row_has_an_end():
    restarts = make(2)
    restarts.count(LOST, 3)
    restarts.count(LOST, 1)  # the checkpoint that it went back to
    says = r"(?s)rank 1 died.*all ranks have been started again 2 times in a row .* step 3 \(cluster\.max_restarts\)"
    with pytest.raises(ClusterError, match=says):
        restarts.count(LOST, 3)


def test_several_at_once_count_each():
    restarts = make(3)
    restarts.count(LOST, 0, num=2)
    with pytest.raises(ClusterError, match="2 times"):
        restarts.count(LOST, 0, num=2)


def test_none_are_allowed():
    with pytest.raises(ClusterError, match="0 times"):
        make(0).count(LOST, 9)
