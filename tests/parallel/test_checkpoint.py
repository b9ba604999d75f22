"""Save and resume of the actor: the same run to the last bit in the same layout, to rounding in another."""

import pytest

from tests.parallel.ranks import run_ranks
from tests.parallel.test_layouts import _moved, stored_sequences
from tests.parallel.test_parity import hf_tensors

pytestmark = pytest.mark.parallel
# With Adam's usual eps a gradient of 1e-9 moves its weight as far as one of 1e-1, rounding and all.
OPTIMIZER = ["optimizer.learning_rate=1e-2", "optimizer.eps=1e-2"]


def two_updates(rank, master, overrides, folder, saves):
    """Two updates with a save between them, or the second one alone, resumed: metrics and weights."""
    import torch

    torch.set_num_threads(1)
    from megatron_nft.actor.topology import data_parallel_rank
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config
    from megatron_nft.data.packing import pack

    config = load_config("launch/recipes/quickstart.toml", ["actor.tp=1", *OPTIMIZER, *overrides])
    worker = Worker(config, rank=rank, master=master)
    groups = [[_moved(s) for s in update] for update in stored_sequences()]
    batch = pack(groups, num_updates=2, dp=config.actor.dp, tokens_per_microbatch=1000)
    first, second = (update[data_parallel_rank(config.actor, rank)] for update in batch.updates)
    if saves:
        worker.train_step([first])
        worker.save(folder)
    else:
        worker.load(folder)
    metrics = worker.train_step([second])
    weights = hf_tensors(worker, lambda parameter: parameter)
    worker.shutdown()
    return metrics, weights


def outcome(world_size, *arguments):
    ranks = run_ranks(world_size, two_updates, *arguments)
    (metrics,) = [metrics for metrics, _ in ranks if metrics is not None]
    return metrics, {name: tensor for _, weights in ranks for name, tensor in weights.items()}


def test_resume_in_this_layout_and_in_others(tmp_path):
    layout = ["actor.tp=2", "actor.pp=2", "actor.vpp=2"]
    metrics, weights = outcome(4, layout, str(tmp_path), True)
    resumed, resumed_weights = outcome(4, layout, str(tmp_path), False)
    assert resumed == metrics
    assert all((resumed_weights[name] == weights[name]).all() for name in weights)
    for world_size, other in ((1, []), (2, ["actor.dp=2"])):
        resumed, resumed_weights = outcome(world_size, other, str(tmp_path), False)
        for name, value in metrics.items():
            assert resumed[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
        assert resumed_weights.keys() == weights.keys()
        assert max(abs(resumed_weights[name] - weights[name]).max() for name in weights) < 1e-6


def load_nothing(rank, master, folder):
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config

    worker = Worker(load_config("launch/recipes/quickstart.toml", ["actor.tp=1"]), rank=rank, master=master)
    worker.load(folder)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(AssertionError, match=r"is no checkpoint: it has no metadata\.json"):
        run_ranks(1, load_nothing, str(tmp_path))
