"""Mixtures of experts: in every layout the log-probs, every gradient and the trained weights of one transformers model.

The layouts are a table in mixtures.py, the oracle is oracle.py (float64, each expert's tensors under their HF names);
what is tested runs in fp32. python -m pytest tests/parallel/test_mixtures.py -s shows the worst differences.
"""

import json
from functools import cache

import numpy as np
import pytest
import torch

from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from tests.parallel.covering import at_night
from tests.parallel.mixtures import (
    LAYOUTS,
    MODELS,
    ON_A_PUSH,
    MixtureLayout,
    gathered_gradients,
    make_mixture,
    meets,
    pieces_of,
)
from tests.parallel.oracle import OVERRIDES, make_updates, train, under_hf_names
from tests.parallel.ranks import run_ranks

BOUNDS = {"log-probs": 5e-6, "gradients": 2e-5, "gradient norm": 1e-5, "weights": 1e-6}
"""As those of test_parity.py."""


def run_rank(rank, master, model, overrides, updates):
    """(log-probs of each answer, metrics, gradient of each update, weights after the last)"""
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
    scores = worker.score(flat) or []
    sequences = [s for m in flat for s in m.sequences] if scores else []
    gradients, step = [], worker.optimizer.step

    def keep_then_step():
        gradients.append(gathered_gradients(worker))
        return step()

    worker.optimizer.step = keep_then_step
    metrics = [worker.train_step([update]) for update in microbatches]
    weights = pieces_of(worker, lambda parameter: parameter)
    worker.shutdown()
    logprobs = {s.token_ids_T.tobytes(): x for s, x in zip(sequences, scores, strict=True)}
    return logprobs, [m for m in metrics if m is not None], gradients, weights


@pytest.fixture(scope="module")
def reference_of(tmp_path_factory):
    """model -> (its folder, updates, the oracle's outcome), made once."""

    @cache
    def make(name):
        folder = make_mixture(name, tmp_path_factory.mktemp("mixture"))
        updates = make_updates(folder)
        return folder, updates, train(folder, updates)

    return make


def worst_of_tensors(ranks, expected, relative):
    """(the largest difference of any rank's part of any tensor, its name); every place is some rank's."""
    assert set().union(*ranks) == expected.keys()
    found, filled = (0.0, ""), {name: np.zeros(tensor.shape, bool) for name, tensor in expected.items()}
    for rank in ranks:
        for name, tensor in rank.items():
            has = ~np.isnan(tensor)
            filled[name] |= has
            off = np.where(has, tensor - expected[name], 0)
            # An expert that no token of an update chose has no gradient at all.
            size = np.linalg.norm(off) / (np.linalg.norm(expected[name]) or 1e-30) if relative else np.abs(off).max()
            found = max(found, (float(size), name))
    assert all(mask.all() for mask in filled.values())
    return found


def differences(ranks, oracle, model):
    """Kind of BOUNDS -> (the largest difference, where)."""
    (metrics,) = [rank[1] for rank in ranks if rank[1]]
    logprobs = {tokens: x for rank in ranks for tokens, x in rank[0].items()}
    assert logprobs.keys() == oracle.logprobs.keys()
    norms = [abs(m["actor/grad_norm"] / n["actor/grad_norm"] - 1) for m, n in zip(metrics, oracle.metrics, strict=True)]
    named = as_in_files(model)
    gradients = [
        worst_of_tensors([rank[2][number] for rank in ranks], named(expected), relative=True)
        for number, expected in enumerate(oracle.gradients)
    ]
    return {
        "log-probs": (max(float(np.abs(logprobs[t] - x).max()) for t, x in oracle.logprobs.items()), ""),
        "gradients": max(gradients),
        "gradient norm": (max(norms), ""),
        "weights": worst_of_tensors([rank[3] for rank in ranks], named(oracle.weights), relative=False),
    }


def as_in_files(model):
    def named(tensors):
        found = under_hf_names(tensors)
        if model != "mixtral":
            return found
        words = {".mlp.": ".block_sparse_moe.", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
        for word, other in words.items():
            found = {name.replace(word, other): tensor for name, tensor in found.items()}
        return found

    return named


@pytest.mark.parallel
@pytest.mark.parametrize(
    "layout", at_night(LAYOUTS, ON_A_PUSH, "no layout of the experts that is new beside another axis"), ids=str
)
def test_parity(reference_of, layout: MixtureLayout):
    folder, updates, oracle = reference_of(layout.model)
    found = differences(run_ranks(layout.num_processes, run_rank, str(folder), layout.overrides, updates), oracle,
                        layout.model)  # fmt: skip
    print(f"\n  {layout}: " + ", ".join(f"{kind} {size:.1e}" for kind, (size, _) in found.items()))
    assert not {kind: worst for kind, worst in found.items() if not worst[0] <= BOUNDS[kind]}


@pytest.mark.parallel
def test_the_balancing_loss_is_a_mean_of_the_updates_tokens(reference_of):
    """So it doesn't grow with them. It does depend on microbatches, which are balanced one by one."""
    folder, updates, oracle = reference_of("qwen3_moe")
    norms = []
    for budget in ("single", "large"):
        layout = MixtureLayout(1, 1, 1, 1, 1, 1, 1, "none", budget, "qwen3_moe")
        overrides = [*layout.overrides, "actor.moe_aux_loss_coeff=0.01"]
        ((_, metrics, _, _),) = run_ranks(1, run_rank, str(folder), overrides, updates[:1])
        norms.append(metrics[0]["actor/grad_norm"] / oracle.metrics[0]["actor/grad_norm"])
    assert all(1e-4 < abs(norm - 1) < 0.02 for norm in norms) and norms[0] != norms[1], norms


def test_the_table_and_its_share_on_a_push():
    assert (
        len(LAYOUTS) >= 20 and len(set(LAYOUTS)) == len(LAYOUTS) and {layout.model for layout in LAYOUTS} == {*MODELS}
    )
    everything = set().union(*map(meets, LAYOUTS))
    assert set().union(*map(meets, ON_A_PUSH)) == everything and len(ON_A_PUSH) < len(LAYOUTS)
    assert {(layout.ep, layout.etp) for layout in LAYOUTS} == {(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)}
