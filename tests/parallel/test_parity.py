"""Parity: in every layout the log-probs, the loss, every gradient and the trained weights of one transformers model.

A plain pytest runs CI_LAYOUTS of tests/parallel/layouts.py; PARITY=full runs all of LAYOUTS:

    PARITY=full python -m pytest tests/parallel/test_parity.py -s

-s shows the worst difference of each kind. The oracle is tests/parallel/oracle.py; everything else runs in fp32.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from tests.parallel.layouts import CI_LAYOUTS, LAYOUTS, VALUES, Layout, possible_layouts
from tests.parallel.oracle import OVERRIDES, VOCAB_SIZE, Group, Outcome, make_model, make_updates, train
from tests.parallel.ranks import run_ranks

BOUNDS = {"log-probs": 1e-5, "loss": 1e-6, "metrics": 1e-5, "gradients": 1e-4, "weights": 1e-5}
"""Largest difference from the oracle: absolute for log-probs and weights, relative for the others (gradients: the L2
norm of a tensor's difference over that of the tensor)."""

# --- A layout, on its ranks ------------------------------------------------------------------------------------------


def outcome_of_rank(rank: int, master: str, model: str, overrides: list[str], updates: list[list[Group]]) -> Outcome:
    """Scores, then trains three times; everything that this rank has to say about it."""
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    paths = [f"model.path={json.dumps(model)}", "data.max_prompt_tokens=40", "rollout.max_answer_tokens=80"]
    config = load_config("launch/recipes/quickstart.toml", [*paths, *OVERRIDES, *overrides])
    worker = Worker(config, rank=rank, master=master)
    replica, budget = data_parallel_rank(config.actor, rank), config.actor.tokens_per_microbatch
    microbatches = [
        pack(groups, num_updates=1, dp=config.actor.dp, tokens_per_microbatch=budget).updates[0][replica]
        for groups in updates
    ]
    flat = [m for update in microbatches for m in update]
    sequences = [s for m in flat for s in m.sequences]
    scores = worker.score(flat)
    gradients = gradients_before_each_step(worker)
    metrics = [worker.train_step([update]) for update in microbatches]
    outcome = Outcome(
        logprobs={} if scores is None else {s.token_ids_T.tobytes(): x for s, x in zip(sequences, scores, strict=True)},
        metrics=[m for m in metrics if m is not None],
        gradients=gradients,
        weights=hf_tensors(worker, lambda parameter: parameter),
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

    from megatron_nft.weights.gather import gather_bucket, plan_weights

    pairs = [(name, pick(parameter)) for name, parameter in every_shard(worker)]
    tp_size, tp_group = worker.topology.tp_size, parallel_state.get_tensor_model_parallel_group()
    plan = plan_weights(pairs, worker.hf, tp_size=tp_size, dtype=torch.float32, bucket_bytes=1 << 18)
    is_first = worker.topology.tp_rank == 0
    tensors = {}
    for bucket in plan.buckets:
        tensors |= gather_bucket(bucket, worker.hf, dtype=torch.float32, tp_group=tp_group, sends=is_first)
        if not is_first:
            tensors |= {s.hf_names[0]: s.tensor for s in bucket if not s.rule.layout.is_sharded}
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


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

    def run(self, layout: Layout, updates: list[list[Group]] | None = None) -> list[Outcome]:
        """The outcome of each rank of a layout."""
        given = (str(self.model), layout.overrides, updates or self.updates)
        return run_ranks(layout.num_processes, outcome_of_rank, *given)


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, Reference]:
    models = {
        name: make_model(tmp_path_factory.mktemp(name), tied=name == "tied") for name in VALUES["embedding"]
    }
    return {name: Reference(model, make_updates(model)) for name, model in models.items()}


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
@pytest.mark.parametrize("layout", LAYOUTS if os.environ.get("PARITY") == "full" else CI_LAYOUTS, ids=str)
def test_parity(references, layout):
    reference = references[layout.embedding]
    found = differences(reference.run(layout), reference.outcome)
    print(f"\n  {layout}: " + ", ".join(f"{kind} {size:.1e}" for kind, (size, _) in found.items()))
    assert not out_of_bounds(found)
