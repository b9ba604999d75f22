"""What one rank makes of a recipe that samples at temperature 0.8, in one call of three updates, against the oracle.

The cheapest place in which a token that is left out, a rate of another group, a schedule that counts steps or another
temperature shows; that no layout changes it: test_parity.py.
"""

import json
from itertools import repeat

import numpy as np
import pytest
import torch

from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from tests.parallel.oracle import LEARNING_RATE, OVERRIDES, make_model, make_updates, train
from tests.parallel.own_pass import with_old_logprobs
from tests.parallel.ranks import run_ranks
from tests.parallel.test_parity import BOUNDS, hf_tensors

pytestmark = pytest.mark.parallel
TEMPERATURE = 0.8


def score_and_train(rank, master, model, updates):
    """Log-probs by token ids; metrics of a step of all updates; the weights after it."""
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    paths = [f"model.path={json.dumps(model)}", "data.max_prompt_tokens=40", "rollout.max_answer_tokens=80"]
    sampling = ["actor.tp=1", f"rollout.temperature={TEMPERATURE}"]
    worker = Worker(load_config("launch/recipes/quickstart.toml", [*paths, *OVERRIDES, *sampling]), rank=rank,
                    master=master)  # fmt: skip
    batches = [pack(groups, num_updates=1, dp=1, tokens_per_microbatch=200).updates[0][0] for groups in updates]
    sequences = [s for update in batches for micro in update for s in micro.sequences]
    scores = worker.score([micro for update in batches for micro in update])
    metrics = worker.train_step(batches)
    weights = hf_tensors(worker, lambda parameter: parameter)
    unscored = with_old_logprobs(batches[1], repeat(None))
    with pytest.raises(ValueError, match="score all but the first"):
        worker.train_step([batches[0], unscored])
    worker.shutdown()
    return {s.token_ids_T.tobytes(): x for s, x in zip(sequences, scores, strict=True)}, metrics, weights


def test_a_step_at_another_temperature_is_the_oracles(tmp_path):
    model = make_model(tmp_path, tied=True, num_layers=2)
    updates = make_updates(model)
    rates = [{s.correct_rate for group in groups for s in group} for groups in updates]
    assert max(map(len, rates)) > 1, "groups of different rates in one update"
    oracle, plain = (train(model, updates, temperature=t) for t in (TEMPERATURE, 1.0))
    ((logprobs, metrics, weights),) = run_ranks(1, score_and_train, str(model), updates)
    assert logprobs.keys() == oracle.logprobs.keys()
    for tokens, mine in logprobs.items():
        assert np.abs(mine - oracle.logprobs[tokens]).max() <= BOUNDS["log-probs"]
        assert np.abs(mine - plain.logprobs[tokens]).max() > 0.01, "temperature 1 is another policy"
    num_tokens = [sum(s.num_answer_tokens for group in groups for s in group) for groups in updates]
    losses = [of_update["nft/loss"] for of_update in oracle.metrics]
    assert metrics["nft/loss"] == pytest.approx(np.average(losses, weights=num_tokens), rel=BOUNDS["metrics"])
    assert metrics["actor/learning_rate"] == pytest.approx(LEARNING_RATE), "the warm-up is over after two updates"
    assert weights.keys() == oracle.weights.keys()
    worst = max(np.abs(weights[name] - oracle.weights[name]).max() for name in weights)
    assert worst <= BOUNDS["weights"]
