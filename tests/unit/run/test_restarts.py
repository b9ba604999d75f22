"""When a run that loses its ranks gives up."""

import pytest

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.processes import ProcessLost
from megatron_nft.run.checkpoints import Restarts

LOST = ProcessLost("train_step: actor rank 1 died")


def test_a_step_further_than_ever_ends_the_row():
    restarts = Restarts(2)
    for step in (0, 0, 3, 1, 4, 4, 5):
        restarts.count(LOST, step)


def test_the_row_has_an_end():
    restarts = Restarts(2)
    restarts.count(LOST, 3)
    restarts.count(LOST, 1)  # the checkpoint that it went back to
    with pytest.raises(ClusterError, match=r"(?s)rank 1 died.*2 times in a row without getting beyond step 3"):
        restarts.count(LOST, 3)


def test_none_are_allowed():
    with pytest.raises(ClusterError, match="0 times"):
        Restarts(0).count(LOST, 9)
