"""The loop's own choices, with stand-ins for what it calls: whose log-probs the loss holds its ratio to."""

from types import SimpleNamespace

import numpy as np
import pytest

from megatron_nft.config import AlgorithmConfig
from megatron_nft.train import score
from megatron_nft.types import TrainBatch, TrainSequence

ENGINE_A = np.array([-1.0, -2.0], np.float32)


def batch():
    sequence = TrainSequence(
        token_ids_T=np.arange(4, dtype=np.int32),
        num_prompt_tokens=2,
        verdict=1.0,
        correct_rate=0.5,
        engine_logprobs_A=ENGINE_A,
    )
    return TrainBatch.of([[[(sequence,)]]])


class Actors:
    """Says which of its verbs were called."""

    def __init__(self):
        self.called = []

    def score_later(self, batch):
        self.called.append("score_later")
        return batch

    def score_reference(self, batch):
        self.called.append("score_reference")
        return batch


@pytest.mark.parametrize(
    ("setting", "expected", "verbs"), [("actor", None, ["score_later"]), ("engine", ENGINE_A, ["score_reference"])]
)
def test_old_log_probs_are_whose_the_recipe_says(setting, expected, verbs):
    """Those of the actor are not known before the first update, whose forward pass has them."""
    run = SimpleNamespace(
        config=SimpleNamespace(algorithm=AlgorithmConfig(old_logprobs=setting)),
        actors=Actors(),
    )
    (scored,) = score(run, batch()).sequences
    np.testing.assert_array_equal(scored.old_logprobs_A, expected)
    np.testing.assert_array_equal(scored.engine_logprobs_A, ENGINE_A)
    assert run.actors.called == verbs
