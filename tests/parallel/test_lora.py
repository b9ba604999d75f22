"""Adapters in every layout: the log-probs, the loss, every gradient and the trained adapters of peft in float64.

What is compared, and how, is test_parity.py's; the oracle is peft_oracle.py. See the worst differences with -s.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_nft.config import load_config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.lora import peft_config
from megatron_nft.weights.export import finish_adapter_folder
from tests.parallel.covering import at_night
from tests.parallel.layouts import Layout
from tests.parallel.oracle import answer_logprobs, load_model, make_model, make_updates
from tests.parallel.peft_oracle import ALL, ALPHA, RANK, make_adapter, peft_model, train_adapter
from tests.parallel.ranks import run_ranks
from tests.parallel.test_parity import differences, outcome_of_rank

pytestmark = pytest.mark.parallel
BOUNDS = {"log-probs": 1e-5, "loss": 1e-6, "metrics": 1e-5, "gradients": 1e-5, "weights": 1e-6}

# fmt: off
LAYOUTS = [
    #  tp pp vpp cp dp sp  recompute   microbatch embedding
    Layout(1, 1, 1, 1, 1, 0, "none",      "large",  "tied"),
    Layout(2, 1, 1, 1, 1, 0, "full",      "small",  "untied"),
    Layout(2, 1, 1, 1, 1, 1, "full",      "small",  "tied"),
    Layout(4, 1, 1, 1, 1, 1, "selective", "single", "untied"),
    Layout(1, 2, 1, 1, 1, 0, "full",      "small",  "tied"),
    Layout(1, 2, 2, 1, 1, 0, "none",      "single", "untied"),
    Layout(1, 1, 1, 2, 1, 0, "none",      "large",  "tied"),
    Layout(1, 1, 1, 1, 2, 0, "full",      "small",  "untied", overlap=True),
    Layout(2, 2, 1, 1, 1, 1, "none",      "small",  "tied"),
    Layout(2, 1, 1, 1, 2, 1, "selective", "small",  "untied"),
    Layout(1, 2, 1, 2, 1, 0, "full",      "large",  "untied"),
]
# fmt: on
ON_A_PUSH = [LAYOUTS[number] for number in (1, 2, 5, 7, 8, 10)]


def overrides(adapter, targets=ALL) -> list[str]:
    return [f"lora.rank={RANK}", f"lora.alpha={ALPHA}", f"lora.targets={json.dumps(targets)}",
            f"lora.adapter={json.dumps(str(adapter))}"]  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """By embedding: model, adapter, updates, and what peft makes of them."""
    found = {}
    for embedding in ("tied", "untied"):
        folder = tmp_path_factory.mktemp(embedding)
        model = make_model(folder / "model", tied=embedding == "tied")
        adapter, updates = make_adapter(model, folder / "adapter"), make_updates(model)
        found[embedding] = model, adapter, updates, train_adapter(model, adapter, updates)
    return found


@pytest.mark.parametrize("layout", at_night(LAYOUTS, ON_A_PUSH, "axes that the others have in other company"), ids=str)
def test_parity_with_peft(cases, layout):
    model, adapter, updates, expected = cases[layout.embedding]
    lines = [*layout.overrides, *overrides(adapter), *(["actor.ddp_bucket_size=2000"] if layout.overlap else [])]
    ranks = run_ranks(layout.num_processes, outcome_of_rank, str(model), lines, updates)
    found = differences(ranks, expected)
    print(f"\n  {layout}: " + ", ".join(f"{kind} {size:.1e}" for kind, (size, _) in found.items()))
    assert not {kind: worst for kind, worst in found.items() if not worst[0] <= BOUNDS[kind]}


# --- The model without its adapters, and dropout ---------------------------------------------------------------------


def scored(rank, master, lines, updates):
    """Log-probs with and without adapters, before and after an update, each twice."""
    from megatron_nft.actor.worker import Worker
    from megatron_nft.data.packing import pack

    torch.set_num_threads(1)
    config = load_config("launch/recipes/quickstart.toml", lines)
    worker = Worker(config, rank=rank, master=master)
    assert worker.reference is None
    (batch,) = pack(updates[0], num_updates=1, dp=1, tokens_per_microbatch=200).updates
    found = []
    for _ in range(2):
        found += [(worker.score(batch[0]), worker.score_reference(batch[0])) for _ in range(2)]
        batch = [[replace(m, sequences=with_reference(m.sequences)) for m in share] for share in batch]
        worker.train_step([batch[0]])
    worker.shutdown()
    sequences = [s.token_ids_T.tobytes() for m in batch[0] for s in m.sequences]
    return [[dict(zip(sequences, scores, strict=True)) for scores in pair] for pair in found if pair[0] is not None]


def with_reference(sequences):
    return tuple(replace(s, reference_logprobs_A=s.old_logprobs_A) for s in sequences)


def test_the_reference_is_the_model_without_adapters_and_scores_have_no_dropout(cases):
    """Whatever has been trained, and at a dropout that would change every score."""
    model, adapter, updates, expected = cases["untied"]
    limits = ["data.max_prompt_tokens=40", "rollout.max_answer_tokens=80"]
    lines = [f"model.path={model}", *limits, "actor.tp=2", "algorithm.kl_weight=0.1", "optimizer.learning_rate=1e-2",
             "optimizer.warmup_updates=0", "lora.dropout=0.5", *overrides(adapter)]  # fmt: skip
    (found,) = [rank for rank in run_ranks(2, scored, lines, updates) if rank]
    base = load_model(model)
    with torch.no_grad():
        alone = {s.token_ids_T.tobytes(): answer_logprobs(base, s).numpy() for group in updates[0] for s in group}

    def apart(one, other):
        return max(np.abs(one[tokens] - other[tokens]).max() for tokens in alone)

    (first, again, trained, trained_again) = found
    assert all(apart(reference, alone) < 1e-5 for _, reference in found)
    assert apart(first[0], expected.logprobs) < 1e-5 and apart(first[0], again[0]) == 0
    assert apart(trained[0], trained_again[0]) == 0 and apart(trained[0], first[0]) > 1e-3
    assert apart(first[0], alone) > 0.1


# --- What is exported ------------------------------------------------------------------------------------------------


def trained_and_saved(rank, master, lines, updates, folder):
    """Trains, writes this stage's adapters into the folder; then log-probs, by tokens, and the files' map."""
    from megatron_nft.actor.worker import Worker
    from megatron_nft.data.packing import pack

    torch.set_num_threads(1)
    worker = Worker(load_config("launch/recipes/quickstart.toml", lines), rank=rank, master=master)
    batches = [pack(update, num_updates=1, dp=1, tokens_per_microbatch=200).updates[0] for update in updates]
    worker.train_step([batch[0] for batch in batches])
    flat = [microbatch for batch in batches for microbatch in batch[0]]
    scores, files = worker.score(flat), worker.save_adapter(folder)
    worker.shutdown()
    tokens = [s.token_ids_T.tobytes() for microbatch in flat for s in microbatch.sequences]
    return {} if scores is None else dict(zip(tokens, scores, strict=True)), files


def test_a_trained_adapter_is_exported_as_peft_reads_it(cases, tmp_path):
    model, adapter, updates, _ = cases["tied"]
    limits = ["data.max_prompt_tokens=40", "rollout.max_answer_tokens=80"]
    lines = [f"model.path={model}", *limits, "actor.tp=2", "actor.pp=2", "actor.sequence_parallel=true",
             "optimizer.learning_rate=1e-2", *overrides(adapter)]  # fmt: skip
    folder = tmp_path / "exported"
    folder.mkdir()
    ranks = run_ranks(4, trained_and_saved, lines, updates, str(folder))
    adapters, hf = load_config("launch/recipes/quickstart.toml", lines).lora.adapters, read_hf_config(model)
    about = peft_config(hf, adapters, base=str(model))
    finish_adapter_folder(folder, about, [files for _, files in ranks if files is not None])
    said = {tokens: scores for scores, _ in ranks for tokens, scores in scores.items()}
    assert furthest(peft_model(model, folder), updates, said) < 1e-5
    assert furthest(peft_model(model, adapter), updates, said) > 1e-2, "training moved nothing"


@torch.no_grad()
def furthest(model, updates, said):
    """Largest distance of its log-probs from those that were said."""
    sequences = [s for update in updates for group in update for s in group]
    return max(np.abs(answer_logprobs(model, s).numpy() - said[s.token_ids_T.tobytes()]).max() for s in sequences)
