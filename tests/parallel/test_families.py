"""A small random model of every family through the actor: transformers' log-probs, gradient norm and weight names."""

import json

import numpy as np
import pytest
import torch

from megatron_nft.config import load_config
from megatron_nft.nft.loss import nft_loss
from megatron_nft.types import MicroBatch, TrainSequence
from tests.parallel.families import LLAMA3
from tests.parallel.oracle import answer_logprobs, save_random
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

DIMENSIONS = {
    "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300, "max_position_embeddings": 256,
    "initializer_range": 0.1, "rms_norm_eps": 1e-5,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    "llama 3": {"tie_word_embeddings": False, "rope_parameters": LLAMA3},
    "qwen2": {"tie_word_embeddings": False},
    "qwen2 yarn": {"tie_word_embeddings": False, "rope_parameters": YARN},
    "llama linear": {
        "tie_word_embeddings": False, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
    },
    # Heads wider than hidden_size / heads, as Qwen3's are.
    "qwen3": {"tie_word_embeddings": True, "head_dim": 64},
    "mistral": {"tie_word_embeddings": False, "sliding_window": None},
    # No padding token, which is 1 by default: torch gives its row of the embedding no gradient.
    "seed_oss": {"tie_word_embeddings": False, "head_dim": 64, "rope_theta": 1e7, "pad_token_id": None},
}  # fmt: skip
LAYOUTS = {"qwen3": ["actor.tp=2", "actor.sequence_parallel=true"], "llama": ["actor.pp=2"]}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    from transformers import AutoConfig

    config = AutoConfig.for_model(family.split()[0], **(DIMENSIONS | FAMILIES[family]))
    return save_random(config, tmp_path_factory.mktemp(family.replace(" ", "_")))


def sequences():
    numbers = np.random.RandomState(1)
    return [
        TrainSequence(
            token_ids_T=numbers.randint(0, 300, length).astype(np.int32),
            num_prompt_tokens=3,
            verdict=verdict,
            correct_rate=0.4,
            engine_logprobs_A=np.zeros(length - 3, np.float32),
            old_logprobs_A=np.full(length - 3, -7.0, np.float32),
        )
        for length, verdict in ((200, 1.0), (40, 0.0), (9, 1.0))
    ]


def score_and_train(rank, master, folder, overrides):
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    paths = [f"model.path={json.dumps(str(folder))}", "data.max_prompt_tokens=150", "rollout.max_answer_tokens=100"]
    worker = Worker(
        load_config("launch/recipes/quickstart.toml", ["actor.tp=1", *paths, *overrides]), rank=rank, master=master
    )
    first, *others = sequences()
    microbatches = [MicroBatch(sequences=(first,)), MicroBatch(sequences=tuple(others))]
    scores = worker.score(microbatches)
    metrics = worker.train_step([microbatches])
    names = worker.weight_names() or []
    worker.shutdown()
    return scores, metrics, names


def test_log_probs_gradient_and_names_equal_those_of_transformers(family, folder):
    from transformers import AutoModelForCausalLM

    ranks = run_ranks(2, score_and_train, folder, LAYOUTS.get(family, ["actor.tp=2"]))
    (scores,) = [rank[0] for rank in ranks if rank[0] is not None]
    (metrics,) = [rank[1] for rank in ranks if rank[1] is not None]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = []
    for sequence, scored in zip(sequences(), scores, strict=True):
        logprobs = answer_logprobs(model, sequence)
        assert np.abs(scored - logprobs.detach().numpy()).max() < 2e-5
        old, ones = torch.from_numpy(sequence.old_logprobs_A), torch.ones(len(logprobs))
        losses.append(nft_loss(logprobs, old, sequence.verdict * ones, sequence.correct_rate * ones))
    loss = torch.cat(losses).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert metrics["nft/loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["actor/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    named = {name for name, _ in model.named_parameters()}
    assert {name for _, _, names in ranks for name in names} == named


@pytest.mark.parametrize("family", ["llama 3", "qwen2 yarn", "llama linear"], indirect=True)
def test_the_scaling_of_positions_shows(family, folder):
    """Else the test above would not notice if it were left out."""
    from transformers import AutoModelForCausalLM

    theta = FAMILIES[family]["rope_parameters"]["rope_theta"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    unscaled = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    first = sequences()[0]
    with torch.no_grad():
        assert (answer_logprobs(model, first) - answer_logprobs(unscaled, first)).abs().max() > 1e-3
