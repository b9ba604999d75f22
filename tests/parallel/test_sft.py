"""Supervised training: the loss and its gradient are transformers' own, token by token, in whatever layout."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from launch.quickstart.upcycle import DENSE, upcycle
from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.config import load_config
from megatron_nft.data.demonstrations import load_demonstrations
from megatron_nft.data.packing import pack
from tests.parallel.oracle import load_model, under_hf_names
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel
MODEL = "tests/assets/quickstart/model"
RECIPE = "launch/quickstart/pupils.toml"


@pytest.fixture
def rows(tmp_path):
    """A file of questions and answers of different lengths."""
    path = tmp_path / "rows.jsonl"
    texts = [
        (f"Ann has {n} pens. She buys {n % 5 + 2} more.", f"buys: {n}+2={n + 2}\n" * (n % 3 + 1)) for n in range(9)
    ]
    path.write_text("".join(json.dumps({"prompt": p, "response": a}) + "\n" for p, a in texts))
    return str(path)


def config_of(rows, model, learns, *overrides):
    places = [f"model.path={model}", f'data.train=["{rows}"]', f"sft.learns={learns}", "actor.tokens_per_microbatch=60"]
    return load_config(RECIPE, [*places, *overrides])


def sequences(config):
    given = load_demonstrations(config.data.train, AutoTokenizer.from_pretrained(MODEL), config)
    return [given.sequence(prompt, learns_prompt=config.sft.learns == "all") for prompt in given.prompts]


def train_on_them(rank, master, rows, model, learns, overrides):
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker
    from tests.parallel.mixtures import gathered_gradients

    config = config_of(rows, model, learns, *overrides)
    worker = Worker(config, rank=rank, master=master)
    batch = pack([[s] for s in sequences(config)], num_updates=1, dp=config.actor.dp, tokens_per_microbatch=60)
    microbatches = list(batch.updates[0][data_parallel_rank(config.actor, rank)])
    logprobs = worker.score(microbatches)
    gradients, step = [], worker.optimizer.step

    def keep_then_step():
        gradients.append(gathered_gradients(worker))
        return step()

    worker.optimizer.step = keep_then_step
    metrics = worker.train_step([microbatches])
    of_answers = [s.token_ids_T.tobytes() for m in microbatches for s in m.sequences]
    worker.shutdown()
    return dict(zip(of_answers, logprobs or [], strict=False)), gradients[0], metrics


@pytest.mark.parametrize(
    ("learns", "overrides"),
    [
        ("answers", ["actor.tp=1"]),
        ("all", ["actor.tp=2"]),
        ("answers", ["actor.dp=2"]),
        ("answers", ["actor.dp=2", "actor.ep=2"]),
    ],
)
def test_loss_and_gradient_are_those_of_transformers(rows, learns, overrides, tmp_path):
    folder = MODEL
    if "actor.ep=2" in overrides:  # experts of an engine's choice there are none: each pass routes
        upcycle(DENSE, folder := tmp_path / "mixture")
    num_ranks = config_of(rows, folder, learns, *overrides).actor.world_size
    ranks = run_ranks(num_ranks, train_on_them, rows, str(folder), learns, overrides)
    model, loss, tokens, found = load_model(folder), 0.0, 0, {k: v for rank in ranks for k, v in rank[0].items()}
    for sequence in sequences(config_of(rows, folder, learns)):
        ids = torch.from_numpy(sequence.token_ids_T).long()[None]
        labels = ids.clone()
        labels[:, : sequence.num_prompt_tokens] = -100
        each = torch.nn.functional.cross_entropy(
            model(ids).logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="none"
        )[sequence.num_prompt_tokens - 1 :]
        np.testing.assert_allclose(-found[sequence.token_ids_T.tobytes()], each.detach(), atol=2e-5)
        whole = model(input_ids=ids, labels=labels).loss  # transformers' own mean over labels
        assert whole.item() == pytest.approx(each.mean().item(), rel=1e-6)
        loss, tokens = loss + each.sum(), tokens + len(each)
    (loss / tokens).backward()
    (metrics,) = [rank[2] for rank in ranks if rank[2] is not None]
    assert metrics["nft/loss"] == pytest.approx((loss / tokens).item(), rel=1e-5)
    expected = under_hf_names({name: parameter.grad.numpy() for name, parameter in model.named_parameters()})
    seen = {name: np.zeros(tensor.shape, bool) for name, tensor in expected.items()}
    for _, gradient, _ in ranks:
        for name in expected.keys() & gradient.keys():
            here = ~np.isnan(gradient[name])  # this rank's part
            seen[name] |= here
            difference = np.linalg.norm((gradient[name] - expected[name])[here])
            # The mixture's experts are nearly alike: a router's gradient is what is left of large terms.
            bound = 1e-4 if name.endswith("mlp.gate.weight") else 2e-5
            assert difference <= bound * np.linalg.norm(expected[name]), name
    assert all(part.all() for part in seen.values())
