"""The planner against what Megatron allocates and autograd keeps, on real ranks: bytes of weights, gradients and
optimizer states exactly, buckets exactly, activations within 10%.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_nft.config import load_config
from megatron_nft.types import MicroBatch, TrainSequence
from tests.parallel.families import FAMILIES, MIXTURES, make_folder
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

BASE = ["data.max_prompt_tokens=40", "rollout.max_answer_tokens=472", "actor.tp=1", "actor.precision=bf16"]
NUM_PROMPT_TOKENS = 16


def sequence(num_tokens: int) -> TrainSequence:
    answer = np.zeros(num_tokens - NUM_PROMPT_TOKENS, np.float32)
    return TrainSequence(
        token_ids_T=np.arange(num_tokens, dtype=np.int32) % 300,
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        verdict=1.0,
        correct_rate=0.5,
        engine_logprobs_A=answer,
        old_logprobs_A=answer,
    )


# --- What lies in memory ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allocated:
    """Bytes of one rank after an update, and what the planner says of them."""

    weights: int
    gradients: int
    optimizer: int
    buckets: list[int]
    planned: tuple[int, int, int, list[int]]


def allocated_on_rank(rank: int, master: str, overrides: list[str]) -> Allocated:
    torch.set_num_threads(1)
    from megatron.core import parallel_state

    from megatron_nft.actor.worker import Worker
    from megatron_nft.plan.buckets import bucket_bytes
    from megatron_nft.plan.memory import weight_element_bytes
    from megatron_nft.plan.parameters import parameters_of_rank

    config = load_config("launch/recipes/quickstart.toml", [*BASE, *overrides])
    worker = Worker(config, rank=rank, master=master)
    worker.train_step([[MicroBatch(sequences=(sequence(24),))]])  # Adam's moments come into being at the first update
    buffers = [b for chunk in worker.model for b in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    parameters = [p for chunk in worker.model for p in chunk.parameters()]
    assert {p.untyped_storage().data_ptr() for p in parameters if p.requires_grad} <= {
        b.param_data.untyped_storage().data_ptr() for b in buffers
    }, "a parameter lies outside the buffers"
    frozen = [p for p in parameters if not p.requires_grad]
    assert bool(frozen) == bool(config.lora.rank) and all(p.grad is None for p in frozen)
    lie_in_buffers = {b.param_data.untyped_storage().data_ptr() for b in buffers}
    parts = worker.optimizer.chained_optimizers
    updated = [p for part in parts for p in part.get_parameters()]
    masters = [p for p in updated if p.untyped_storage().data_ptr() not in lie_in_buffers]
    moments = [
        tensor
        for part in parts
        for state in part.optimizer.state.values()
        for name, tensor in state.items()
        if name in ("exp_avg", "exp_avg_sq")
    ]
    mine = parameters_of_rank(worker.hf, config.actor, worker.topology.pp_rank, config.lora.adapters)
    shards = parallel_state.get_data_parallel_rank(True), parallel_state.get_expert_data_parallel_rank()
    element = weight_element_bytes(config)
    result = Allocated(
        weights=sum(b.param_data.nbytes for b in buffers) + sum(p.nbytes for p in frozen),
        gradients=sum(b.grad_data.nbytes for b in buffers),
        optimizer=sum(tensor.nbytes for tensor in [*masters, *moments]),
        buckets=[bucket.num_bytes for bucket in worker._sent.buckets],
        planned=(
            mine.weight_bytes(element),
            mine.gradient_bytes,
            mine.optimizer_bytes(element, *shards),
            list(bucket_bytes(config, worker.hf, worker.topology.pp_rank)),
        ),
    )
    worker.shutdown()
    return result


LAYOUTS = {
    "one rank": [],
    "one rank, fp32": ["actor.precision=fp32", "rollout.dtype=float32"],
    "tp2": ["actor.tp=2"],
    "tp2 sp": ["actor.tp=2", "actor.sequence_parallel=true"],
    "pp2": ["actor.pp=2"],
    "pp2 vpp2": ["actor.pp=2", "actor.vpp=2"],
    "uneven pp2": ["actor.pp=2", "actor.num_layers_in_last_pipeline_stage=1"],
    "dp2": ["actor.dp=2"],
    "dp3": ["actor.dp=3"],
    "dp3, fp32": ["actor.dp=3", "actor.precision=fp32"],
    "cp2": ["actor.cp=2"],
    "tp2 dp2": ["actor.tp=2", "actor.dp=2"],
    "pp2 vpp2 dp2, buckets": [
        "actor.pp=2", "actor.vpp=2", "actor.dp=2", "actor.overlap_grad_reduce=true", "actor.overlap_param_gather=true",
        "actor.ddp_bucket_size=30000",
    ],
    "tp2 dp2, adapters": ["actor.tp=2", "actor.dp=2", "lora.rank=6", "lora.sync=adapter"],
    "pp2, adapters": ["actor.pp=2", "lora.rank=3", 'lora.targets=["linear_proj", "linear_fc1"]'],
}  # fmt: skip
SP = "actor.sequence_parallel=true"
OF_EXPERTS = {
    "tp2, experts": ("qwen2_moe", ["actor.tp=2", SP]),
    "dp4 ep2": ("qwen3_moe", ["actor.dp=4", "actor.ep=2"]),
    "pp2 dp2 ep2, some layers dense": ("qwen3_moe mixed", ["actor.pp=2", "actor.dp=2", "actor.ep=2"]),
    "tp2 dp2 ep2 etp2": ("mixtral", ["actor.tp=2", SP, "actor.dp=2", "actor.ep=2", "actor.etp=2"]),
}
LAYOUTS |= {name: overrides for name, (_, overrides) in OF_EXPERTS.items()}
CASES = [
    pytest.param(family, layout, id=f"{family}, {layout}")
    for number, layout in enumerate(name for name in LAYOUTS if name not in OF_EXPERTS)
    for family in (("qwen2 tied", "qwen2") if "pp2" in layout else (tuple(FAMILIES)[number % len(FAMILIES)],))
]
CASES += [pytest.param(family, layout, id=f"{family}, {layout}") for layout, (family, _) in OF_EXPERTS.items()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {
        family: make_folder(family, "float32", 0, tmp_path_factory.mktemp("model")) for family in (*FAMILIES, *MIXTURES)
    }


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_weights_gradients_optimizer_and_buckets_have_the_planned_bytes(family, layout, folders):
    recipe = [f"model.path={folders[family]}", "weights.bucket_mib=1", *LAYOUTS[layout]]
    world_size = load_config("launch/recipes/quickstart.toml", [*BASE, *recipe]).actor.world_size
    for number, rank in enumerate(run_ranks(world_size, allocated_on_rank, recipe)):
        measured = (rank.weights, rank.gradients, rank.optimizer, rank.buckets)
        assert rank.planned == measured, f"rank {number}"


# --- What autograd keeps ---------------------------------------------------------------------------------------------


class Ledger:
    """Bytes of different storages that autograd holds, now and at most."""

    def __init__(self, but: set[int]) -> None:
        self._but, self._holders, self._now, self.peak = but, {}, 0, 0

    @contextmanager
    def watch(self) -> Iterator["Ledger"]:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: Held(tensor, self), lambda held: held.tensor):
            yield self

    def change(self, tensor: torch.Tensor, by: int) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self._but:
            return
        before = self._holders.get(key, 0)
        self._holders[key] = before + by
        if before == 0 or before + by == 0:
            self._now += by * storage.nbytes()
            self.peak = max(self.peak, self._now)


class Held:
    """Lives as long as autograd keeps the tensor."""

    def __init__(self, tensor: torch.Tensor, ledger: Ledger) -> None:
        self.tensor, self._ledger = tensor, ledger
        ledger.change(tensor, +1)

    def __del__(self) -> None:
        self._ledger.change(self.tensor, -1)


def kept_on_rank(rank: int, master: str, overrides: list[str], lengths: list[int]) -> tuple[int, float]:
    """Bytes that autograd keeps at most in an update of 4 such microbatches, and the planner's figure."""
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker
    from megatron_nft.plan.activations import activations
    from megatron_nft.plan.parameters import layers_of_rank

    config = load_config("launch/recipes/quickstart.toml", [*BASE, *overrides])
    worker = Worker(config, rank=rank, master=master)
    microbatch = MicroBatch(sequences=tuple(sequence(length) for length in lengths))
    weights = {p.untyped_storage().data_ptr() for chunk in worker.model for p in chunk.parameters()}
    with Ledger(weights).watch() as ledger:
        worker.pipeline.forward_backward([microbatch] * 4)
    actor, pp_rank = config.actor, worker.topology.pp_rank
    tokens = sum(lengths) / actor.cp
    planned = activations(
        worker.hf,
        actor,
        pp_rank=pp_rank,
        layers=layers_of_rank(actor, worker.hf.num_hidden_layers, pp_rank),
        tokens=tokens,
        answer_tokens=tokens - len(lengths) * NUM_PROMPT_TOKENS / actor.cp,
        microbatches=4,
        is_local=True,
        uneven=len(set(lengths)) > 1,
    )
    worker.shutdown()
    return ledger.peak, planned.saved


EQUAL, UNEVEN = [256, 256], [300, 200, 180, 160, 90, 60, 40]
ACTIVATIONS = {
    "one rank": ([], EQUAL),
    "one rank, fp32": (["actor.precision=fp32"], EQUAL),
    "one rank, uneven lengths": ([], UNEVEN),
    "selective": (["actor.recompute=selective"], EQUAL),
    "full": (["actor.recompute=full"], UNEVEN),
    "tp2": (["actor.tp=2"], EQUAL),
    "tp2 sp": (["actor.tp=2", "actor.sequence_parallel=true"], UNEVEN),
    "tp2 sp, full": (["actor.tp=2", "actor.sequence_parallel=true", "actor.recompute=full"], EQUAL),
    "cp2": (["actor.cp=2"], EQUAL),
    "pp2": (["actor.pp=2"], EQUAL),
    "pp2 vpp2": (["actor.pp=2", "actor.vpp=2"], EQUAL),
    "pp2, uneven, selective": (
        ["actor.pp=2", "actor.num_layers_in_last_pipeline_stage=1", "actor.recompute=selective"],
        UNEVEN,
    ),
}


@pytest.mark.parametrize(
    ("family", "case"),
    [*(("qwen2", case) for case in ACTIVATIONS), *(("qwen3", case) for case in ("one rank, fp32", "full", "tp2 sp"))],
)
def test_autograd_keeps_what_is_planned(family, case, folders):
    overrides, lengths = ACTIVATIONS[case]
    recipe = [f"model.path={folders[family]}", *overrides]
    world_size = load_config("launch/recipes/quickstart.toml", [*BASE, *recipe]).actor.world_size
    for measured, planned in run_ranks(world_size, kept_on_rank, recipe, lengths):
        print(f"\n{family}, {case}: measured {measured}, planned {planned:.0f} ({planned / measured - 1:+.1%})", end="")
        assert planned == pytest.approx(measured, rel=0.1)
