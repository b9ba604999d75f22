"""Gradients reduced during the backward pass, parameters gathered during the next forward pass: the same training."""

import numpy as np
import pytest

from tests.parallel import test_layouts
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel
OVERLAPS = ["actor.overlap_grad_reduce=true", "actor.overlap_param_gather=true", "actor.ddp_bucket_size=100000"]


def train(rank, master, overrides):
    """As test_layouts does, and how many messages the first chunk's gradients are cut into."""
    from megatron_nft.actor import worker

    buckets = []
    build = worker.build_model

    def counting(*arguments):
        model = build(*arguments)
        buckets.append(len(model[0].bucket_groups))
        return model

    worker.build_model = counting
    scored, metrics, weights = test_layouts.train_on_stored_batch(rank, master, overrides)
    return scored, metrics, weights, buckets[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["actor.dp=2", "actor.tokens_per_microbatch=300"],
        ["actor.pp=2", "actor.vpp=2", "actor.dp=2", "actor.tokens_per_microbatch=400"],
    ],
    ids=" ".join,
)
def test_overlaps_change_nothing(overrides):
    world_size = 4 if "actor.pp=2" in overrides else 2
    ranks = run_ranks(world_size, train, [*overrides, *OVERLAPS])
    assert ranks[0][3] > 1, "a single bucket overlaps with nothing"
    _, oracle, oracle_weights = test_layouts.outcome()
    (metrics,) = [rank[1] for rank in ranks if rank[1] is not None]
    for name, expected in oracle.items():
        assert metrics[name] == pytest.approx(expected, rel=1e-5, abs=1e-7), name
    weights = {name: tensor for rank in ranks for name, tensor in rank[2].items()}
    assert weights.keys() == oracle_weights.keys()
    assert max(np.abs(weights[name] - oracle_weights[name]).max() for name in weights) < 1e-6
