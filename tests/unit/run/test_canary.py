"""The canary's comparison, with stand-ins for engines and actor; real ones: tests/e2e/test_faults.py."""

from dataclasses import replace

import numpy as np
import pytest

from megatron_nft.config import load_config
from megatron_nft.run import canary
from megatron_nft.types import Prompt, Rollout, RolloutGroup

PROMPT = Prompt(prompt_id="p/0", text="", token_ids_P=np.arange(3, dtype=np.int32), ground_truth="", data_source="")
ACTOR_A = np.array([-1.0, -2.0, -3.0, -4.0], np.float32)
CONFIG = load_config("launch/recipes/quickstart.toml", ["weights.canary_gap=0.01"])


class Actors:
    """Has its own opinion of every answer."""

    def __init__(self):
        self.scored = []

    def score(self, batch):
        self.scored += [s.token_ids_T.tolist() for s in batch.sequences]
        return batch.map_sequences(lambda s, _: replace(s, old_logprobs_A=ACTOR_A))


def check(monkeypatch, offsets):
    """With an engine for each offset of its log-probs from the actor's; and what the actor was asked."""

    def one_answer_each(engines, prompt, sampling, timeout_s):
        assert sampling.temperature == CONFIG.rollout.temperature
        return {
            f"engine {number}": RolloutGroup(
                prompt=prompt,
                rollouts=(
                    Rollout(text="", token_ids_A=np.arange(4, dtype=np.int32), engine_logprobs_A=ACTOR_A + offset,
                            truncated=False, policy_version=1),
                ),
            )
            for number, offset in enumerate(offsets)
        }  # fmt: skip

    monkeypatch.setattr(canary, "one_answer_each", one_answer_each)
    actors = Actors()
    return canary.check_canary(actors, None, PROMPT, CONFIG), actors.scored


def test_the_worst_engine_counts_and_equal_answers_are_scored_once(monkeypatch):
    metrics, scored = check(monkeypatch, [0.0, -0.005, 0.001])
    assert metrics == {"weights/canary_gap": pytest.approx(0.005, rel=1e-3)}
    assert scored == [[0, 1, 2, 0, 1, 2, 3]]


@pytest.mark.parametrize("offset", [0.1, -0.1, np.nan])
def test_an_engine_with_other_weights_is_named(monkeypatch, offset):
    with pytest.raises(canary.CanaryError, match=r"engine 1's log-probs are (0\.1|nan) .* weights.canary_gap is 0.01"):
        check(monkeypatch, [0.0, offset])


@pytest.mark.parametrize(
    ("overrides", "gap"),
    [
        ([], 1e-3),
        (["actor.precision=bf16"], 0.1),
        (["rollout.dtype=bfloat16"], 0.1),
        (["actor.precision=bf16", "weights.canary_gap=0.3"], 0.3),
    ],
)
def test_how_far_apart_they_may_be(overrides, gap):
    config = load_config("launch/recipes/quickstart.toml", overrides)
    assert config.canary_gap == gap and config.weights.canary == "start"
