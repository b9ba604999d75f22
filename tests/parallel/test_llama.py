"""A small random Llama through the actor: the same log-probs as transformers, whole and in two pipeline stages."""

import json

import numpy as np
import pytest
import torch

from megatron_nft.config import load_config
from megatron_nft.types import MicroBatch, TrainSequence
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An HF folder: 3 query heads a key/value head, tied embeddings and a rope base of its own, as SmolLM2 has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96, intermediate_size=160, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
        head_dim=32, vocab_size=300, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.1,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sequences():
    numbers = np.random.RandomState(1)
    return [
        TrainSequence(
            token_ids_T=numbers.randint(0, 300, length).astype(np.int32),
            num_prompt_tokens=3,
            verdict=1.0,
            correct_rate=0.5,
            engine_logprobs_A=np.zeros(length - 3, np.float32),
        )
        for length in (120, 40, 9)
    ]


def score(rank, master, folder, overrides):
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    paths = [f"model.path={json.dumps(str(folder))}", "data.max_prompt_tokens=100"]
    worker = Worker(
        load_config("launch/recipes/quickstart.toml", ["actor.tp=1", *paths, *overrides]), rank=rank, master=master
    )
    first, *others = sequences()
    scores = worker.score([MicroBatch(sequences=(first,)), MicroBatch(sequences=tuple(others))])
    names = worker.weight_names() or []
    worker.shutdown()
    return scores, names


@pytest.mark.parametrize("pp", [1, 2])
def test_log_probs_and_weight_names_equal_those_of_transformers(folder, pp):
    from transformers import AutoModelForCausalLM

    ranks = run_ranks(pp, score, folder, [f"actor.pp={pp}"])
    (scores,) = [scores for scores, _ in ranks if scores is not None]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for sequence, scored in zip(sequences(), scores, strict=True):
        tokens = torch.from_numpy(sequence.token_ids_T).long()
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens[None]).logits[0], -1)
        expected = logprobs[2:-1].gather(1, tokens[3:, None])[:, 0]
        assert np.abs(scored - expected.numpy()).max() < 1e-5
    named = {name for name, _ in model.named_parameters()}
    assert {name for _, names in ranks for name in names} == named
