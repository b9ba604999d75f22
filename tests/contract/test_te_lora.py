"""Adapters on TransformerEngine's layers: their names, shapes and marks, a frozen base, an optimizer of their size, and
the numbers that Megatron's own layers give with them.
"""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.lora import TARGETS, Adapters, adapter_parameters, adapter_shapes
from tests.contract.test_te_models import SP, folders, words, world_size  # noqa: F401
from tests.parallel.families import MIXTURES
from tests.parallel.ranks import run_ranks

STAGE = "tests.contract.played"
ADAPTERS = Adapters(rank=4, alpha=8.0, rslora=False, targets=TARGETS)
LAYOUTS = [
    {},
    SP,
    {"pp": 2, "vpp": 2},
    {"precision": "fp8-tensorwise", "fp8_param": True},
    {"dp": 2, "recompute": "full", "overlap_grad_reduce": True, "overlap_param_gather": True},
]


@dataclass(frozen=True, kw_only=True)
class Built:
    """Of one family on one rank."""

    shapes: dict[str, tuple[int, ...]]  # that its stage sends
    wrong: list[str]  # parameters with marks other than their rule's, or trained when they are the model's
    keys: set[str]
    optimizer_numbers: int
    buffer_numbers: int


def build(rank, master, folders, settings):  # noqa: F811
    from megatron_nft.actor.topology import destroy_topology, init_topology
    from megatron_nft.config import ActorConfig

    actor = ActorConfig(**settings)
    topology = init_topology(actor, rank=rank, master=master, device="cuda", seed=1)
    found = {family: _build(folder, actor, topology) for family, folder in folders.items()}
    destroy_topology()
    return found


def _build(folder, actor, topology):
    import torch

    from megatron_nft.actor.checkpoint import _state
    from megatron_nft.actor.hf_weights import load_hf_weights
    from megatron_nft.actor.lora import named_adapters
    from megatron_nft.actor.model import build_model
    from megatron_nft.actor.optimizer import build_optimizer
    from megatron_nft.config import LoraConfig, OptimizerConfig
    from megatron_nft.families.lora import adapter_table
    from megatron_nft.weights.plan import plan_weights

    hf = read_hf_config(folder)
    model = build_model(hf, actor, topology, LoraConfig(rank=4, alpha=8.0), seed=1)
    load_hf_weights(model, folder, hf, topology)
    table, shards = adapter_table(hf, ADAPTERS), list(named_adapters(model))
    adapters = {id(parameter) for _, parameter in shards}
    wrong = [n for chunk in model for n, p in chunk.named_parameters() if p.requires_grad != (id(p) in adapters)]
    for name, parameter in shards:
        rule, _ = table.find(name)
        marks = getattr(parameter, "tensor_model_parallel", False), getattr(parameter, "sequence_parallel", False)
        if marks != (bool(rule.axes), actor.sequence_parallel and not rule.axes):
            wrong.append(f"{name}: {marks}")
        if parameter.shape != rule.layout.shard_shape(topology.place):
            wrong.append(f"{name}: {tuple(parameter.shape)}")
    plan = plan_weights(shards, table, places=topology.stage_places, dtype=torch.bfloat16, bucket_bytes=1 << 20)
    optimizer, schedule = build_optimizer(model, OptimizerConfig(), actor, updates_per_step=1)
    state = _state(model, optimizer, schedule, is_loading=True, only_adapters=True)
    entries = [v for name, part in state.items() if name.startswith("model") for n, v in part.items() if "lora" in n]
    return Built(
        shapes={name: spec.shape for bucket in plan.buckets for name, spec in bucket.tensors.items()},
        wrong=wrong,
        keys={value.key for value in entries},
        optimizer_numbers=sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
        buffer_numbers=sum(p.numel() for chunk in model for buffer in chunk.buffers for p in buffer.params),
    )


@pytest.mark.parametrize("settings", LAYOUTS, ids=words)
def test_every_family_with_adapters(folders, settings):  # noqa: F811
    folders = {family: folder for family, folder in folders.items() if family not in MIXTURES}
    ranks = run_ranks(world_size(settings), build, folders, settings, stage=STAGE)
    for family, folder in folders.items():
        hf, mine = read_hf_config(folder), [rank[family] for rank in ranks]
        assert [rank.wrong for rank in mine] == [[]] * len(mine)
        shapes = adapter_shapes(hf, ADAPTERS)
        assert {name: shape for rank in mine for name, shape in rank.shapes.items()} == shapes
        assert set.union(*(rank.keys for rank in mine)) == {p.key for p in adapter_parameters(hf, ADAPTERS)}
        numbers = sum(int(np.prod(shape)) for shape in shapes.values())
        assert all(rank.buffer_numbers <= numbers for rank in mine)
        if "dp" in settings:  # each rank has a half of the optimizer
            assert sum(rank.optimizer_numbers for rank in mine) == numbers == mine[0].buffer_numbers
        elif "tp" not in settings:
            assert sum(rank.optimizer_numbers for rank in mine) == sum(rank.buffer_numbers for rank in mine) == numbers


# --- Numbers ---------------------------------------------------------------------------------------------------------


def trained(rank, master, device, overrides):
    """Log-probs, two updates' metrics and gradients' norms, the reference's log-probs, the merged weights."""
    from megatron_nft.actor.lora import named_adapters
    from megatron_nft.actor.topology import data_parallel_rank
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config
    from megatron_nft.data.packing import pack
    from megatron_nft.observe.batches import load_batch

    recipe = ["actor.tp=1", f"cluster.device={device}", "lora.rank=4", *overrides]
    config = load_config("launch/recipes/quickstart.toml", recipe)
    worker = Worker(config, rank=rank, master=master)
    stored = [update[:16] for update in load_batch("tests/assets/quickstart/batch.npz")[:2]]
    batch = pack(stored, num_updates=2, dp=config.actor.dp, tokens_per_microbatch=2048)
    updates = [list(update[data_parallel_rank(config.actor, rank)]) for update in batch.updates]
    metrics = [worker.train_step([update]) for update in updates]
    scores, reference = worker.score(updates[0]), worker.score_reference(updates[0])
    norms = {name: float(p.detach().norm()) for name, p in named_adapters(worker.model)} if rank == 0 else {}
    worker.shutdown()
    return metrics, scores and np.concatenate(scores), reference and np.concatenate(reference), norms


KL = ["algorithm.kl_weight=0.1", "optimizer.learning_rate=1e-2", "optimizer.warmup_updates=0", "optimizer.eps=1e-2"]


@pytest.mark.parametrize(
    "overrides",
    [[], ["actor.tp=2", "actor.sequence_parallel=true", "actor.recompute=full"], ["actor.pp=2", "actor.vpp=2"]],
    ids=json.dumps,
)
def test_the_numbers_of_megatrons_own_layers(overrides):
    size = 2 if overrides else 1
    shared = ["actor.precision=fp32", *KL, *overrides]
    local = run_ranks(size, trained, "cpu", shared)
    fused = run_ranks(size, trained, "cuda", shared, stage=STAGE)
    for (metrics, scores, reference, norms), (m, s, r, n) in zip(local, fused, strict=True):
        for one, other in zip(metrics, m, strict=True):
            assert (one is None) == (other is None)
            for name in one or {}:
                # A token whose ratio is nearly 1 is clamped by the one's rounding, and not by the other's.
                near = 0.02 if name == "nft/clamped_fraction" else 1e-5
                assert other[name] == pytest.approx(one[name], rel=1e-3, abs=near), name
        assert scores is s is None or np.abs(scores - s).max() < 1e-4
        assert reference is r is None or np.abs(reference - r).max() < 1e-4
        assert reference is None or np.abs(reference - scores).max() > 1e-3
        assert n == pytest.approx(norms, rel=1e-4)
