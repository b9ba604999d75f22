"""What is said of a carrier, and what its sender does."""

from types import SimpleNamespace
from typing import get_args

import pytest

from megatron_nft.config import WeightsConfig, load_config
from megatron_nft.config.carriers import CARRIERS
from megatron_nft.weights import collective, cuda_ipc, shared_memory

SENDERS = {
    shared_memory.CARRIER: shared_memory.SharedMemorySender,
    collective.CARRIER: collective.CollectiveSender,
    cuda_ipc.CARRIER: cuda_ipc.CudaIpcSender,
}


def test_every_carrier_of_a_recipe_is_described():
    assert {"auto", *CARRIERS} == set(get_args(WeightsConfig.model_fields["carrier"].annotation))
    assert CARRIERS.keys() == SENDERS.keys()


@pytest.mark.parametrize("carrier", CARRIERS)
def test_senders_count_rounds_as_the_planner_does(carrier):
    """Two stages of 3 and 2 buckets, and what the driver makes of the ranks' answers: the largest."""
    sizes = [[1, 2, 3], [4, 5]]
    answers = []
    for stage in range(2):
        sender = SENDERS[carrier].__new__(SENDERS[carrier])  # without its groups and buffers
        sender._plan, sender._sizes = SimpleNamespace(buckets=sizes[stage]), sizes
        answers.append(sender.num_rounds)
    assert max(answers) == CARRIERS[carrier].num_rounds([3, 2]) == (6 if carrier == "cuda_ipc" else 3)


def test_a_recipes_carrier_is_resolved():
    config = load_config("launch/recipes/quickstart.toml", ["cluster.device=cuda", "cluster.placement=colocated"])
    assert config.carrier_traits is CARRIERS["cuda_ipc"]
