"""The gap between engine and actor: metrics by hand; four faults of an engine, told apart by what they look like.

The policy is a random one that depends on the place, so that answers to one prompt share places and part again.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from megatron_nft.observe.gap import diagnose, logprob_gap, temperature_of
from megatron_nft.types import MicroBatch, TrainBatch, TrainSequence

VOCABULARY, PROMPTS, ANSWERS, LENGTH = 12, 24, 16, 20


def batch_of(*sequences):
    return TrainBatch(updates=(((MicroBatch(sequences=sequences),),),))


def sequence(num_tokens, gaps):
    return TrainSequence(
        token_ids_T=np.arange(num_tokens, dtype=np.int32),
        num_prompt_tokens=num_tokens - len(gaps),
        verdict=1.0,
        correct_rate=0.5,
        engine_logprobs_A=np.full(len(gaps), -1.0, np.float32),
        old_logprobs_A=np.array([-1.0 + gap for gap in gaps], np.float32),
    )


def test_metrics_by_hand():
    batch = batch_of(sequence(9, [0.1, 0.1, 0.1, 0.1]), sequence(5, [-0.5]))
    metrics = logprob_gap(batch, importance_cap=1.1)
    sizes, weights, answers = [0.1] * 4 + [0.5], np.exp([0.1] * 4 + [-0.5]), np.exp([0.4, -0.5])
    assert metrics == {
        "rollout/logprob_gap_mean": pytest.approx(0.18, abs=1e-6),
        "rollout/logprob_gap_p99": pytest.approx(np.quantile(sizes, 0.99), abs=1e-6),
        "rollout/logprob_gap_max": pytest.approx(0.5, abs=1e-6),
        "rollout/gap_signed": pytest.approx(-0.02, abs=1e-6),
        "rollout/gap_kl": pytest.approx((4 * (math.exp(0.1) - 1.1) + math.exp(-0.5) - 0.5) / 5, abs=1e-6),
        "rollout/gap_ess_tokens": pytest.approx(weights.sum() ** 2 / 5 / (weights**2).sum(), abs=1e-6),
        "rollout/gap_ess_answers": pytest.approx(answers.sum() ** 2 / 2 / (answers**2).sum(), abs=1e-6),
        "rollout/gap_quarter_1": pytest.approx(0.3, abs=1e-6),
        "rollout/gap_quarter_2": pytest.approx(0.1, abs=1e-6),
        "rollout/gap_quarter_3": pytest.approx(0.1, abs=1e-6),
        "rollout/gap_quarter_4": pytest.approx(0.1, abs=1e-6),
        "rollout/importance_capped_fraction": 0.8,  # the actor finds 4 of 5 tokens likelier than the engine, by e^0.1
    }
    assert logprob_gap(batch, importance_cap=1.2)["rollout/importance_capped_fraction"] == 0


def test_no_gap_is_none_and_a_huge_one_is_finite():
    metrics = logprob_gap(batch_of(sequence(9, [0.0] * 4)))
    assert metrics["rollout/gap_kl"] == 0 and metrics["rollout/gap_ess_tokens"] == 1
    metrics = logprob_gap(batch_of(sequence(9, [1e4, -1e4, 3.0, 0.0])))
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_gap_of_a_batch_without_scores_is_an_error():
    with pytest.raises(TypeError):
        logprob_gap(batch_of(replace(sequence(9, [0.0]), old_logprobs_A=None)))


# --- An engine that is wrong ------------------------------------------------------------------------------------------


def sampled(engine_of, seed=0):
    """Sequences whose tokens the engine samples from its own distribution at each place, given the actor's logits."""
    random, sequences = np.random.default_rng(seed), []
    for prompt in range(PROMPTS):
        for _ in range(ANSWERS):
            answer, old, engine = [], [], []
            for _ in range(LENGTH):
                place = np.random.default_rng([prompt, *answer])
                logits = place.normal(size=VOCABULARY) * place.choice(
                    [1.0, 12.0]
                )  # at most places one is all but certain
                actor, sampler = log_softmax(logits), log_softmax(engine_of(logits, place))
                token = int(random.choice(VOCABULARY, p=np.exp(sampler)))
                old.append(actor[token])
                engine.append(sampler[token])
                answer.append(token)
            sequences.append(
                TrainSequence(
                    token_ids_T=np.array([100 + prompt, *answer], np.int32),
                    num_prompt_tokens=1,
                    verdict=1.0,
                    correct_rate=0.5,
                    engine_logprobs_A=np.array(engine, np.float32),
                    old_logprobs_A=np.array(old, np.float32),
                )
            )
    return sequences


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def top_p(logits, place):
    """The likeliest tokens with nine tenths of the probability."""
    order = np.argsort(-logits)
    rest = np.cumsum(np.exp(log_softmax(logits)[order])) - np.exp(log_softmax(logits)[order])
    return np.where(np.isin(np.arange(len(logits)), order[rest < 0.9]), logits, -1e9)


def noisy(sequences, size):
    random = np.random.default_rng(1)
    return [
        replace(s, engine_logprobs_A=s.engine_logprobs_A + random.normal(0, size, LENGTH).astype(np.float32))
        for s in sequences
    ]


def test_temperature_by_its_name_and_size():
    found = diagnose(sampled(lambda logits, place: logits / 0.9))
    assert found.cause == "temperature" and "what a temperature 0.9 times the actor's does" in found.words
    assert diagnose(sampled(lambda logits, place: logits / 1.3)).cause == "temperature"


@pytest.mark.parametrize("size", [0.03, 0.3])
def test_other_weights_by_theirs(size):
    assert diagnose(sampled(lambda logits, place: logits + size * place.normal(size=VOCABULARY))).cause == "weights"


def test_a_flatter_policy_with_other_weights_is_no_temperature():
    """As an older policy is, where training has sharpened it."""
    found = diagnose(sampled(lambda logits, place: logits / 1.05 + 0.1 * place.normal(size=VOCABULARY)))
    assert found.cause == "weights"


@pytest.mark.parametrize("size", [0.05, 0.005])
def test_noise_by_its_own(size):
    assert diagnose(noisy(sampled(lambda logits, place: logits), size)).cause == "noise"


def test_a_cut_distribution_by_its_own():
    assert diagnose(sampled(top_p)).cause == "cut"


def test_few_answers_get_a_name_too():
    assert diagnose([sequence(9, [0.1, -0.1])]).cause == "weights"
    assert diagnose([sequence(9, [-0.1, -0.1])]).cause in ("cut", "weights")


@pytest.mark.parametrize("size", [0.05, 0.2])
def test_noise_without_certain_tokens(size):
    """One token at one place has another gap from answer to answer."""
    sequences = [
        replace(s, old_logprobs_A=s.old_logprobs_A - 0.1, engine_logprobs_A=s.engine_logprobs_A - 0.1)
        for s in noisy(sampled(lambda logits, place: logits), size)
    ]
    assert max(s.old_logprobs_A.max() for s in sequences) < -0.02
    found = diagnose(sequences)
    assert found.cause == "noise" and "the same token at the same place" in found.words


def test_what_can_not_be_told_is_said():
    assert "(or it is noise: no token is certain, and no two answers share one)" in diagnose([sequence(9, [0.1])]).words


def test_a_temperature_with_other_weights_is_not_denied():
    found = diagnose(sampled(lambda logits, place: logits / 0.9 + 0.3 * place.normal(size=VOCABULARY)))
    assert found.cause == "weights" and "no temperature alone" in found.words


@pytest.mark.parametrize(
    ("whose", "value", "words"),
    [
        ("engine_logprobs_A", math.nan, "of 4 tokens' log-probs 1 of the engine's are not finite"),
        ("engine_logprobs_A", -math.inf, "1 of the engine's"),
        ("old_logprobs_A", -math.inf, "1 of the actor's"),
    ],
)
def test_what_is_not_finite_comes_first(whose, value, words, recwarn):
    whole = sequence(9, [0.1] * 4)
    broken = replace(whole, **{whose: np.array([-1, value, -1, -1], np.float32)})
    found = diagnose([broken])
    assert found.cause == "not finite" and words in found.words
    logprob_gap(batch_of(broken))
    assert not recwarn.list


@pytest.mark.parametrize("temperature", [0.97, 1.002])
def test_a_temperature_at_any_size(temperature):
    found = temperature_of(sampled(lambda logits, place: logits / temperature))
    assert found is not None and f"what a temperature {temperature:.3g} times" in found.words
    assert temperature_of(noisy(sampled(lambda logits, place: logits), 0.02)) is None
    assert temperature_of(sampled(lambda logits, place: logits)) is None, "rounding"
