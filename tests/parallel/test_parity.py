"""Parity: in every layout the log-probs, the loss, every gradient and the trained weights of one transformers model.

The layouts are a table in layouts.py, the oracle is oracle.py (float64); what is tested runs in fp32. To see the worst
difference of each kind in each layout: python -m pytest tests/parallel/test_parity.py -s
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from megatron_nft.families.rules import Table
from tests.parallel.covering import at_night
from tests.parallel.layouts import LAYOUTS, ON_A_PUSH, Layout, meets, possible_layouts
from tests.parallel.oracle import GRAD_CLIP, OVERRIDES, VOCAB_SIZE, Group, Outcome, make_model, make_updates, train
from tests.parallel.own_pass import changed_by_scoring_apart
from tests.parallel.ranks import run_ranks

BOUNDS = {"log-probs": 5e-6, "loss": 1e-6, "metrics": 1e-5, "gradients": 2e-5, "weights": 1e-6}
"""Largest difference from the oracle: absolute for log-probs and weights, relative for the others (gradients: the L2
norm of a tensor's difference over that of the tensor)."""

PLAIN = Layout(1, 1, 1, 1, 1, 0, "none", "large", "tied")

# --- A layout, on its ranks ------------------------------------------------------------------------------------------


def outcome_of_rank(
    rank: int, master: str, model: str, overrides: list[str], updates: list[list[Group]], is_sound: bool = True
) -> Outcome:
    """Scores, then trains three times; everything that this rank has to say about it."""
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    paths = [f"model.path={json.dumps(model)}", "data.max_prompt_tokens=40", "rollout.max_answer_tokens=80"]
    config = load_config("launch/recipes/quickstart.toml", [*paths, *OVERRIDES, *overrides])
    worker = Worker(config, rank=rank, master=master)
    if config.actor.overlap_grad_reduce and worker.topology.is_first_stage:  # Megatron buckets no later stage
        assert len(worker.model[0].bucket_groups) > 1, "a single message overlaps with nothing"
    replica, budget = data_parallel_rank(config.actor, rank), config.actor.tokens_per_microbatch
    microbatches = [
        pack(groups, num_updates=1, dp=config.actor.dp, tokens_per_microbatch=budget).updates[0][replica]
        for groups in updates
    ]
    flat = [m for update in microbatches for m in update]
    sequences = [s for m in flat for s in m.sequences]
    scores = worker.score(flat)
    of_own_pass = changed_by_scoring_apart(worker, microbatches[0]) if is_sound else {}
    gradients = gradients_before_each_step(worker)
    metrics = [worker.train_step([update]) for update in microbatches]
    outcome = Outcome(
        logprobs={} if scores is None else {s.token_ids_T.tobytes(): x for s, x in zip(sequences, scores, strict=True)},
        metrics=[m for m in metrics if m is not None],
        gradients=gradients,
        weights=hf_tensors(worker, lambda parameter: parameter),
        of_own_pass=of_own_pass,
    )
    worker.shutdown()
    return outcome


def gradients_before_each_step(worker) -> list[dict[str, np.ndarray]]:
    """A list to which every `worker.train_step` will add the gradient that its optimizer finds."""
    gradients: list[dict[str, np.ndarray]] = []
    step = worker.optimizer.step

    def keep_then_step():
        # Each rank has the summed gradient of its own shard of a bucket only, the one that it has the optimizer for.
        buckets = [bucket for chunk in worker.model for buffer in chunk.buffers for bucket in buffer.buckets]
        found = [bucket.grad_data.clone() for bucket in buckets]
        for bucket in buckets:
            gather_shards(bucket.grad_data)
        gradients.append(hf_tensors(worker, lambda parameter: parameter.main_grad))
        for bucket, data in zip(buckets, found, strict=True):
            bucket.grad_data.copy_(data)
        return step()

    worker.optimizer.step = keep_then_step
    return gradients


def gather_shards(bucket: torch.Tensor) -> None:
    """Puts each data-parallel rank's shard of a bucket into the bucket."""
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    shard = bucket.chunk(dist.get_world_size(group))[dist.get_rank(group)].clone()
    dist.all_gather_into_tensor(bucket, shard, group=group)


def hf_tensors(worker, pick: Callable[[torch.nn.Parameter], torch.Tensor]) -> dict[str, np.ndarray]:
    """What `pick` says of this rank's parameters, as HF tensors: whole ones on the first tensor-parallel rank of every
    replica, on the others those that are not sharded and so must be equal."""
    from megatron.core import parallel_state

    from megatron_nft.weights.gather import gather_bucket
    from megatron_nft.weights.plan import plan_weights

    table, shards = trained(worker)
    pairs, places = [(name, pick(parameter)) for name, parameter in shards], worker.topology.stage_places
    group = parallel_state.get_tensor_model_parallel_group()
    plan = plan_weights(pairs, table, places=places, dtype=torch.float32, bucket_bytes=1 << 18)
    is_first = worker.topology.tp_rank == 0
    tensors = {}
    for bucket in plan.buckets:
        whole = bucket.empty_tensors(torch.float32, "cpu") if is_first else None
        gather_bucket(bucket, places, whole, dtype=torch.float32, group=group)
        replicated = [s for s in bucket.shards if not s.rule.axes]
        pieces = [part for s in replicated for part in s.parts(s.tensor, ())]
        tensors |= whole or {part.name: part.piece.view(bucket.tensors[part.name].shape) for part in pieces}
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def trained(worker) -> tuple[Table, Iterator[tuple[str, torch.nn.Parameter]]]:
    """The rules of the parameters that are trained, and this rank's: the adapters' if it has any."""
    from megatron_nft.actor.lora import named_adapters
    from megatron_nft.families.lora import adapter_table
    from megatron_nft.families.registry import table_of

    if (adapters := worker.config.lora.adapters) is not None:
        return adapter_table(worker.hf, adapters), named_adapters(worker.model)
    return table_of(worker.hf), every_shard(worker)


def every_shard(worker) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """As `named_shards`, and the last stage's copy of a tied embedding, which must be equal."""
    from megatron.core.utils import unwrap_model

    from megatron_nft.actor.hf_weights import named_shards

    yield from named_shards(worker.model, worker.hf)
    if worker.hf.tie_word_embeddings and worker.topology.pp_size > 1 and worker.topology.is_last_stage:
        yield "embedding.word_embeddings.weight", unwrap_model(worker.model[-1]).output_layer.weight


# --- Comparison ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """A model, its updates and what the oracle makes of them."""

    model: Path
    updates: list[list[Group]]

    @cached_property
    def outcome(self) -> Outcome:
        return train(self.model, self.updates)

    def run(self, layout: Layout) -> list[Outcome]:
        """The outcome of each rank of a layout."""
        return run_ranks(layout.num_processes, outcome_of_rank, str(self.model), layout.overrides, self.updates)


@pytest.fixture(scope="module")
def reference_of(tmp_path_factory) -> Callable[[Layout], Reference]:
    """The model that goes through a layout, made once."""

    @cache
    def make(embedding: str, num_layers: int) -> Reference:
        model = make_model(tmp_path_factory.mktemp(embedding), tied=embedding == "tied", num_layers=num_layers)
        return Reference(model, make_updates(model))

    return lambda layout: make(layout.embedding, layout.num_layers)


def differences(ranks: list[Outcome], oracle: Outcome) -> dict[str, tuple[float, str]]:
    """Per kind of BOUNDS: the largest difference of any rank from the oracle, and where."""
    (metrics,) = [rank.metrics for rank in ranks if rank.metrics]  # one rank speaks
    assert {name for rank in ranks for name in rank.logprobs} == oracle.logprobs.keys()
    assert {name for rank in ranks for name in rank.weights} == oracle.weights.keys()
    for number, expected in enumerate(oracle.gradients):
        assert {name for rank in ranks for name in rank.gradients[number]} == expected.keys()
    found: dict[str, list[tuple[float, str]]] = {kind: [] for kind in BOUNDS}
    for number, expected in enumerate(oracle.metrics):
        for name, value in expected.items():
            kind = "loss" if name == "nft/loss" else "metrics"
            found[kind].append((abs(metrics[number][name] / value - 1), f"{name} of update {number + 1}"))
    for rank in ranks:
        for tokens, logprobs in rank.logprobs.items():
            worst = np.abs(logprobs - oracle.logprobs[tokens]).max()
            found["log-probs"].append((worst, f"a sequence of {len(tokens) // 4} tokens"))
        for name, weight in rank.weights.items():
            found["weights"].append((np.abs(weight - oracle.weights[name]).max(), name))
        for number, tensors in enumerate(rank.gradients):
            for name, gradient in tensors.items():
                expected = oracle.gradients[number][name]
                relative = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
                found["gradients"].append((relative, f"{name} of update {number + 1}"))
    return {kind: max((float(size), where) for size, where in values) for kind, values in found.items()}


def out_of_bounds(found: dict[str, tuple[float, str]]) -> dict[str, tuple[float, str]]:
    return {kind: worst for kind, worst in found.items() if not worst[0] <= BOUNDS[kind]}  # NaN is out, too


@pytest.mark.parallel
@pytest.mark.parametrize(
    "layout", at_night(LAYOUTS, ON_A_PUSH, "no pair of settings that is new, but all in this one combination"), ids=str
)
def test_parity(reference_of, layout):
    reference = reference_of(layout)
    ranks = reference.run(layout)
    found = differences(ranks, reference.outcome)
    print(f"\n  {layout}: " + ", ".join(f"{kind} {size:.1e}" for kind, (size, _) in found.items()))
    assert not out_of_bounds(found)
    assert {value for rank in ranks for value in rank.of_own_pass.values()} == {0.0}, "bit by bit"
    assert any("ratio_max" in rank.of_own_pass for rank in ranks)


# --- The table and the updates are what they claim -------------------------------------------------------------------


def test_the_table_has_every_way_to_lay_out_4_processes_and_every_pair_of_values():
    possible = list(possible_layouts())
    assert all(layout.is_possible for layout in LAYOUTS)
    assert {layout.processes for layout in LAYOUTS} == {layout.processes for layout in possible}
    assert set().union(*(layout.pairs for layout in possible)) <= set().union(*(layout.pairs for layout in LAYOUTS))


def test_a_push_runs_every_value_every_pair_of_values_and_what_is_special():
    """Of the whole table; each of its rows is there for something that no other has."""
    everything = set().union(*map(meets, LAYOUTS))
    assert set().union(*map(meets, ON_A_PUSH)) == everything and len(ON_A_PUSH) < len(LAYOUTS)
    for layout in ON_A_PUSH:
        assert set().union(*(meets(other) for other in ON_A_PUSH if other != layout)) != everything, layout


@pytest.mark.parametrize("layout", [PLAIN, Layout(1, 4, 2, 1, 1, 0, "none", "large", "tied")], ids=str)
def test_the_updates_have_the_odd_cases(reference_of, layout):
    reference = reference_of(layout)
    sequences = [s for groups in reference.updates for group in groups for s in group]
    assert min(s.num_answer_tokens for s in sequences) == min(s.num_prompt_tokens for s in sequences) == 1
    assert len(reference.updates[1]) == 1 and len(reference.updates[1][0]) < 4  # of 4 data-parallel ranks one has none
    assert VOCAB_SIZE % 2
    for metrics in reference.outcome.metrics:
        assert metrics["nft/loss"] > 0.1
        assert 0.2 < metrics["nft/clamped_fraction"] < 0.8 and metrics["nft/ratio_max"] > 1.2
    clipped = [metrics["actor/grad_norm"] > GRAD_CLIP for metrics in reference.outcome.metrics]
    assert clipped == [False, True, False]


# --- What is wrong is noticed ----------------------------------------------------------------------------------------


def lose_one_sequence(rank: int) -> None:
    """Rank 1 trains without the shortest of its sequences."""
    from megatron_nft.actor.pipeline import Pipeline

    forward_backward = Pipeline.forward_backward

    def lossy(self, microbatches):
        *others, last = microbatches
        return forward_backward(self, [*others, replace(last, sequences=last.sequences[:-1])])

    if rank == 1:
        Pipeline.forward_backward = lossy


def keep_replicas_apart(rank: int) -> None:
    """Gradients are not summed over the data-parallel ranks."""
    from megatron.core.distributed import DistributedDataParallel

    DistributedDataParallel.finish_grad_sync = lambda self, *args, **kwargs: None


def keep_norms_apart(rank: int) -> None:
    """Under sequence parallelism each rank's norms see its own tokens; their gradients are not summed."""
    from megatron.core.distributed import finalize_model_grads

    module = sys.modules[finalize_model_grads.__module__]
    module._allreduce_non_tensor_model_parallel_grads = lambda *args, **kwargs: None


def keep_embeddings_apart(rank: int) -> None:
    """The gradients of the first and the last stage's copy of a tied embedding are not summed."""
    from megatron.core.distributed import finalize_model_grads

    module = sys.modules[finalize_model_grads.__module__]
    module._allreduce_word_embedding_grads = lambda *args, **kwargs: None


FAULTS = {
    lose_one_sequence: (Layout(1, 1, 1, 1, 2, 0, "none", "large", "tied"), "model."),
    keep_replicas_apart: (Layout(1, 1, 1, 1, 2, 0, "none", "large", "tied"), "model."),
    keep_norms_apart: (Layout(2, 1, 1, 1, 1, 1, "none", "large", "tied"), "norm.weight"),
    keep_embeddings_apart: (Layout(1, 2, 1, 1, 1, 0, "none", "large", "tied"), "embed_tokens.weight"),
}
"""What goes wrong on the ranks: in which layout, and in what gradient it shows most."""


def outcome_with_fault(rank: int, master: str, fault: Callable[[int], None], *args) -> Outcome:
    fault(rank)
    return outcome_of_rank(rank, master, *args, is_sound=False)


@pytest.mark.parallel
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_noticed(reference_of, fault):
    layout, where = FAULTS[fault]
    reference = reference_of(layout)
    ranks = run_ranks(2, outcome_with_fault, fault, str(reference.model), layout.overrides, reference.updates)
    wrong = out_of_bounds(differences(ranks, reference.outcome))
    assert wrong.keys() >= {"gradients", "weights"} and "log-probs" not in wrong
    assert where in wrong["gradients"][1]


def test_one_tensor_off_by_a_thousandth_is_noticed(reference_of):
    oracle = reference_of(PLAIN).outcome
    name = "model.layers.2.self_attn.k_proj.bias"  # the smallest gradient of all
    first, second, third = oracle.gradients
    off = replace(oracle, gradients=[first, {**second, name: second[name] * 1.001}, third])
    assert not out_of_bounds(differences([oracle], oracle))
    assert out_of_bounds(differences([off], oracle)) == {"gradients": (pytest.approx(1e-3), f"{name} of update 2")}


@pytest.mark.parametrize("other", [{"decays_all": True}, {"grad_clip": float("inf")}], ids=str)
def test_another_optimizer_is_noticed(reference_of, other):
    reference = reference_of(PLAIN)
    assert "weights" in out_of_bounds(
        differences([train(reference.model, reference.updates, **other)], reference.outcome)
    )
