"""Save and resume of the actor: the same run to the last bit in the same layout, to rounding in any other.

In every layout (tp, pp, dp) of {1,2} x {1,2} x {1,2} six updates run straight, with a save after the third. Then ranks
of every layout go on from their own save and from two others', with --all from every layout's.
"""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint_tools.megatron_folder import MegatronFolder
from tests.parallel.families import make_folder
from tests.parallel.ranks import run_ranks
from tests.parallel.test_layouts import _moved, stored_sequences
from tests.parallel.test_parity import hf_tensors

pytestmark = pytest.mark.parallel
LAYOUTS = list(product((1, 2), repeat=3))
"""(tp, pp, dp)."""
OTHERS = {
    # The layout in which all axes differ, and one in which a single axis does: each axis in turn.
    layout: [tuple(3 - size for size in layout), tuple(3 - s if a == number % 3 else s for a, s in enumerate(layout))]
    for number, layout in enumerate(LAYOUTS)
}
"""Whose saves ranks of a layout go on from on a push."""
HALF = 3
# With Adam's usual eps a gradient of 1e-9 moves its weight as far as one of 1e-1, rounding and all.
SETTINGS = ["data.max_prompt_tokens=128", "optimizer.learning_rate=1e-3", "optimizer.eps=1e-2"]


def name_of(layout):
    return "tp{}pp{}dp{}".format(*layout)


def six_updates():
    sequences = [s for update in stored_sequences() for s in update]
    return [[_moved(s) for s in sequences[8 * u : 8 * u + 8]] for u in range(2 * HALF)]


def build(rank, master, folder, layout, overrides=()):
    """A worker, and its share of six updates."""
    torch.set_num_threads(1)
    from megatron_nft.actor.topology import data_parallel_rank
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config
    from megatron_nft.data.packing import pack

    axes = [f"actor.{axis}={size}" for axis, size in zip(("tp", "pp", "dp"), layout, strict=True)]
    model = f"model.path={json.dumps(f'{folder}/model')}"
    config = load_config("launch/recipes/quickstart.toml", [model, *axes, *SETTINGS, *overrides])
    worker = Worker(config, rank=rank, master=master)
    batch = pack(six_updates(), num_updates=2 * HALF, dp=config.actor.dp, tokens_per_microbatch=600)
    return worker, [update[data_parallel_rank(config.actor, rank)] for update in batch.updates]


def straight(rank, master, folder, layout):
    """Six updates, a save between the third and the fourth, another at the end."""
    worker, updates = build(rank, master, folder, layout)
    worker.train_step(updates[:HALF])
    worker.begin_save(f"{folder}/{name_of(layout)}", HALF, HALF)  # the rest is written while training goes on
    metrics = worker.train_step(updates[HALF:])
    worker.finish_save()
    worker.save(f"{folder}/{name_of(layout)}_end")
    return metrics, hf_tensors(worker, lambda parameter: parameter)


def resumed(rank, master, folder, layout, others):
    """The last three updates, from each of the other layouts' saves."""
    worker, updates = build(rank, master, folder, layout)
    found = {}
    for other in others:
        worker.load(f"{folder}/{name_of(other)}")
        metrics = worker.train_step(updates[HALF:])
        found[other] = metrics, hf_tensors(worker, lambda parameter: parameter)
        if other == layout:
            worker.save(f"{folder}/{name_of(layout)}_resumed")
    return found


def whole(ranks):
    """One rank's metrics, and the model of all."""
    (metrics,) = [metrics for metrics, _ in ranks if metrics is not None]
    return metrics, {name: tensor for _, tensors in ranks for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def saves(tmp_path_factory):
    """The folder with the saves of all layouts, and what came of the straight runs."""
    folder = tmp_path_factory.mktemp("saves")
    make_folder("qwen2 tied", "float32", 5, folder / "model")  # its vocabulary is padded otherwise for each tp
    outcomes = {}
    for layout in LAYOUTS:
        for end in ("", "_end", "_resumed"):
            (folder / f"{name_of(layout)}{end}").mkdir()
        outcomes[layout] = whole(run_ranks(np.prod(layout), straight, str(folder), layout))
    return folder, outcomes


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_from_its_own_save_and_two_other_layouts_to(saves, layout):
    folder, outcomes = saves
    found = go_on(folder, outcomes, layout, [layout, *OTHERS[layout]])
    metrics, weights = outcomes[layout]
    again, weights_again = found[layout]
    assert again == metrics
    assert all((weights_again[name] == weights[name]).all() for name in weights)
    same_bits(folder / f"{name_of(layout)}_end", folder / f"{name_of(layout)}_resumed")


@pytest.mark.night("the five layouts whose saves the test above does not load")
@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_from_all_other_layouts_to(saves, layout):
    go_on(*saves, layout, [other for other in LAYOUTS if other != layout and other not in OTHERS[layout]])


def go_on(folder, outcomes, layout, others):
    """What came of each other layout's save on the ranks of this one; all equal the straight run of this one."""
    ranks = run_ranks(np.prod(layout), resumed, str(folder), layout, others)
    metrics, weights = outcomes[layout]
    found = {other: whole([rank[other] for rank in ranks]) for other in others}
    for other, (again, weights_again) in found.items():
        assert weights_again.keys() == weights.keys()
        for name, value in metrics.items():
            assert again[name] == pytest.approx(value, rel=1e-5, abs=5e-6), (other, name)
        assert max(abs(weights_again[name] - weights[name]).max() for name in weights) < 1e-6, other
    return found


def test_on_a_push_every_axis_changes_alone_both_ways_and_all_at_once():
    pairs = [(layout, other) for layout, others in OTHERS.items() for other in others]
    changes = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairs]
    alone = {change for change in changes if sum(map(abs, change)) == 1}
    assert alone == {(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)}
    assert sum(0 not in change for change in changes) == len(LAYOUTS)
    assert all(len(set(others)) == 2 and layout not in others for layout, others in OTHERS.items())


def same_bits(one, other):
    """Weights, master weights, moments and the schedule of two checkpoints of one layout."""
    first, second = MegatronFolder(one), MegatronFolder(other)
    assert first.tensors.keys() == second.tensors.keys() and len(first.tensors) > len(first.weights) > 0
    for key, tensor in first.tensors.items():
        chunks = {chunk.offset: chunk for chunk in second.tensors[key].chunks}
        for chunk in tensor.chunks:
            assert torch.equal(first.read(tensor, chunk), second.read(second.tensors[key], chunks[chunk.offset])), key
    assert first.read_common()["schedule"] == second.read_common()["schedule"]


def written(rank, master, folder, layout):
    """Two saves: with every rank's share, and gathered, as earlier versions of this program have written it; the
    latter is gone on from."""
    import torch.distributed as dist

    worker, updates = build(rank, master, folder, layout)
    worker.train_step(updates[:1])
    shares, gathered = (Path(folder) / f"{name_of(layout)}_{name}" for name in ("shares", "gathered"))
    if rank == 0:
        shares.mkdir()
        gathered.mkdir()
    dist.barrier()
    worker.save(str(shares))
    state = {f"model{number}": chunk.module.sharded_state_dict() for number, chunk in enumerate(worker.model)}
    sharding = {"distrib_optim_sharding_type": "fully_reshardable"}
    state["optimizer"] = worker.optimizer.sharded_state_dict(state, metadata=sharding)
    save_as_megatron_does(state | {"schedule": worker.schedule.state_dict(), "layout": {}}, str(gathered))
    weights, moments = hf_tensors(worker, lambda parameter: parameter), moments_of(worker)
    worker.train_step(updates[1:2])
    worker.load(str(gathered))
    again = hf_tensors(worker, lambda parameter: parameter)
    assert all((again[name] == weights[name]).all() for name in weights)
    assert all(torch.equal(one, other) for one, other in zip(moments, moments_of(worker), strict=True))


def save_as_megatron_does(state, folder):
    from megatron.core import dist_checkpointing

    dist_checkpointing.save(state, folder)


def moments_of(worker):
    states = [state for part in worker.optimizer.chained_optimizers for state in part.optimizer.state.values()]
    return [state[name].clone() for state in states for name in ("exp_avg", "exp_avg_sq")]


def bytes_of_ranks(folder, num_ranks):
    """Of all numbers that lie in each rank's files."""
    found, stored = [0] * num_ranks, MegatronFolder(folder)
    for tensor in stored.tensors.values():
        for chunk in tensor.chunks:
            found[int(chunk.file.split("_")[2])] += int(np.prod(chunk.shape)) * tensor.dtype.itemsize
    return found


@pytest.mark.parametrize("layout", [(1, 1, 2), (1, 1, 4), (2, 1, 2)], ids=name_of)
def test_every_rank_writes_its_share_and_what_one_replica_wrote_is_read(saves, layout):
    folder, num_ranks = saves[0], int(np.prod(layout))
    run_ranks(num_ranks, written, str(folder), layout)
    shares, gathered = (bytes_of_ranks(folder / f"{name_of(layout)}_{n}", num_ranks) for n in ("shares", "gathered"))
    print(f"{name_of(layout)}: a rank writes {shares} bytes, with the first replica's gathered {gathered}")
    assert sum(shares) == sum(gathered) and gathered[layout[0] :] == [0] * (num_ranks - layout[0])
    assert max(shares) < 1.3 * sum(shares) / num_ranks


def random_numbers(rank, master, folder, saves):
    """Draws, a save between them."""
    worker, updates = build(rank, master, folder, (1, 2, 1))
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    def draw():
        with get_cuda_rng_tracker().fork():
            inside = torch.rand(3).tolist()
        return inside + torch.rand(3).tolist()

    if saves:
        worker.train_step(updates[:1])
        draw()
        torch.manual_seed(1000 + rank)  # each rank's own
        worker.save(f"{folder}/random")
    else:
        worker.load(f"{folder}/random")
    return draw()


def test_every_rank_draws_the_random_numbers_that_it_would_have_drawn(saves):
    folder, _ = saves
    (folder / "random").mkdir()
    straight_on = run_ranks(2, random_numbers, str(folder), True)
    assert run_ranks(2, random_numbers, str(folder), False) == straight_on
    assert straight_on[0] != straight_on[1]


def changed_recipe(rank, master, folder):
    worker, updates = build(rank, master, folder, (1, 1, 1), ["optimizer.learning_rate=5e-4", "optimizer.beta2=0.9"])
    worker.load(f"{folder}/{name_of((1, 1, 1))}")
    metrics = worker.train_step(updates[HALF : HALF + 1])
    return metrics["actor/learning_rate"], {group["betas"] for group in worker.optimizer.param_groups}


def test_the_recipe_and_not_the_checkpoint_says_how_to_go_on(saves):
    ((rate, betas),) = run_ranks(1, changed_recipe, str(saves[0]))
    assert rate == 5e-4  # after 4 updates of warm-up
    assert betas == {(0.9, 0.9)}


def load_from(rank, master, folder):
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config

    worker = Worker(load_config("launch/recipes/quickstart.toml", ["actor.tp=1"]), rank=rank, master=master)
    worker.load(folder)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(AssertionError, match=r"no Megatron checkpoint, it has no metadata\.json"):
        run_ranks(1, load_from, str(tmp_path))
