"""GSPO, CISPO, TOPR, signed and asymmetric REINFORCE, MaxRL: by hand, finite differences, extremes, schedules."""

import math

import numpy as np
import pytest
import torch

from megatron_nft.config import AlgorithmConfig
from megatron_nft.config.methods import METHODS
from megatron_nft.nft.methods import method_of
from tests.unit.nft.test_methods import group

RATIOS = [1.5, 0.5, 2.0, 0.8, 0.25]
IDS = torch.tensor([0, 0, 1, 1, 2])
"""A right answer, and two wrong ones; the ratios' geometric means are sqrt(0.75), sqrt(1.6), 0.25."""
VERDICTS, RATE = torch.tensor([1.0, 1, 0, 0, 0]), 0.25
ADVANTAGES = torch.tensor([2.0, 2.0, -1.0, -1.0, -1.0])
OLD = torch.tensor([-1.0, -2.0, -0.5, -1.5, -3.0], dtype=torch.float64)
GSPO_1, GSPO_2 = math.sqrt(0.75), math.sqrt(1.6)


def losses_and_gradients(algorithm, move=None):
    """At these ratios; the gradient of the sum of all losses."""
    logprobs = (OLD + torch.tensor(RATIOS).double().log()) if move is None else OLD + move
    logprobs.requires_grad_()
    columns = {
        "old_logprobs": OLD,
        "engine_logprobs": OLD,
        "verdict": VERDICTS.double(),
        "correct_rate": torch.full((5,), RATE, dtype=torch.float64),
        "advantage": ADVANTAGES.double(),
        "sequence_id": IDS,
    }
    losses = method_of(algorithm).losses(logprobs, columns, algorithm)
    losses.sum().backward()
    return losses.detach(), logprobs.grad, logprobs, columns


def now(i):
    """log pi of a token."""
    return OLD[i].item() + math.log(RATIOS[i])


@pytest.mark.parametrize(
    ("algorithm", "losses", "gradients"),
    [
        # An answer's loss at each of its tokens, its gradient once in all: 1/T of it each, T times.
        (
            {"name": "gspo"},
            [-2 * GSPO_1, -2 * GSPO_1, GSPO_2, GSPO_2, 1 - 3e-4],
            [-2 * GSPO_1, -2 * GSPO_1, GSPO_2, GSPO_2, 0.0],
        ),
        (
            {"name": "gspo", "clip_high": 0.5, "clip_low": 0.5},
            [-2 * GSPO_1, -2 * GSPO_1, GSPO_2, GSPO_2, 0.5],
            [-2 * GSPO_1, -2 * GSPO_1, GSPO_2, GSPO_2, 0.0],
        ),
        # The ratio weighs, cut at 1 + clip_high, and no gradient is lost.
        (
            {"name": "cispo", "clip_high": 0.3},
            [-1.3 * 2 * now(0), -0.5 * 2 * now(1), 1.3 * now(2), 0.8 * now(3), 0.25 * now(4)],
            [-2.6, -1.0, 1.3, 0.8, 0.25],
        ),
        # Right: as they are. Wrong: min(R, 1) of the answer, 2.0 x 0.8 and 0.25.
        (
            {"name": "topr", "neg_weight": 0.5},
            [-now(0), -now(1), 0.5 * now(2), 0.5 * now(3), 0.125 * now(4)],
            [-1.0, -1.0, 0.5, 0.5, 0.125],
        ),
        ({"name": "topr", "ratio_type": "token", "normalize": 1}, None, [-0.75, -0.75, 0.75, 0.6, 0.1875]),
        # The clipped objective with A = 1, -1: 1.5 is beyond 1.2, 0.25 and 0.8 are not above 0.8.
        ({"name": "psr"}, [-1.2, -0.5, 0, 0, 0], [0.0, -0.5, 0, 0, 0]),
        ({"name": "nsr"}, [0, 0, 2.0, 0.8, 0.8], [0, 0, 2.0, 0.8, 0.0]),
        ({"name": "w_reinforce", "clip_high": 1.0}, None, [-0.15, -0.05, 2.0, 0.8, 0.0]),
        ({"name": "asymre"}, [-2 * now(0), -2 * now(1), now(2), now(3), now(4)], [-2.0, -2.0, 1.0, 1.0, 1.0]),
        ({"name": "nft", "pos_weight": 0.0, "neg_weight": 1.0}, None, None),
        ({"name": "maxrl"}, [-2.4, -1.0, 2.0, 0.8, 0.8], [0.0, -1.0, 2.0, 0.8, 0.0]),
    ],
)
def test_losses_and_gradients_by_hand(algorithm, losses, gradients):
    found, slopes, *_ = losses_and_gradients(AlgorithmConfig(**algorithm))
    if losses is not None:
        assert found.tolist() == pytest.approx(losses, abs=1e-6)
    if gradients is None:
        assert slopes[:2].tolist() == [0, 0] and (slopes[2:] > 0).all()
    else:
        assert slopes.tolist() == pytest.approx(gradients, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_against_finite_differences(name):
    """Of what has no weight without gradient, in float64, away from corners."""
    algorithm = AlgorithmConfig(name=name)
    *_, logprobs, columns = losses_and_gradients(algorithm)
    frozen = {"cispo", "topr", "nft"}  # a straight-through clamp, weights without gradient: by hand above
    if name in frozen:
        return
    loss = lambda x: method_of(algorithm).losses(x, columns, algorithm)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (logprobs.detach() + 0.01).requires_grad_())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("move", [-1e4, -12.0, 12.0, 1e3])
def test_extremes_are_finite(name, move):
    losses, gradients, *_ = losses_and_gradients(AlgorithmConfig(name=name), move)
    assert losses.isfinite().all() and gradients.isfinite().all()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("rft", "rft_script", "psr", "nsr")])
def test_at_a_ratio_of_one_a_methods_gradient_is_its_weight(name):
    """-A dlog pi, with each one's A, right and wrong."""
    algorithm = AlgorithmConfig(name=name)
    _, gradients, *_ = losses_and_gradients(algorithm, 0.0)
    right, wrong = {
        "nft": (0.75, -0.25),
        "topr": (1.0, -1.0),
        "w_reinforce": (0.1, -1.0),
        "sft": (1.0, 1.0),
    }.get(name, (2.0, -1.0))
    assert gradients.tolist() == pytest.approx([-right] * 2 + [-wrong] * 3, abs=1e-6)


def test_advantages_of_asymmetric_reinforce_and_of_maxrl():
    judged = group("right", "wrong", "wrong", "wrong")
    asymre = method_of(AlgorithmConfig(name="asymre")).answers(judged, AlgorithmConfig(name="asymre"), 8)
    assert asymre["advantage"].tolist() == pytest.approx([0.85, -0.15, -0.15, -0.15])
    algorithm = AlgorithmConfig(name="maxrl")
    assert method_of(algorithm).answers(judged, algorithm, 8)["advantage"].tolist() == pytest.approx([3, -1, -1, -1])


def test_weights_go_by_the_step():
    algorithm = AlgorithmConfig(neg_weight=0.5, neg_weight_end=1.0, pos_weight_end=0.0, schedule_steps=4)
    found = [(a.neg_weight, a.pos_weight) for a in map(algorithm.at_step, (1, 2, 3, 5, 99))]
    assert found == [(0.5, 1.0), (0.625, 0.75), (0.75, 0.5), (1.0, 0.0), (1.0, 0.0)]
    plain = AlgorithmConfig(neg_weight=0.5)
    assert plain.at_step(7) is plain


def test_gspo_counts_an_answer_once_whatever_its_length():
    """With its reduction, the mean over an answer's tokens."""
    losses, gradients, *_ = losses_and_gradients(AlgorithmConfig(name="gspo"))
    assert gradients[:2].sum() / 2 == pytest.approx(losses[0].item()) and np.ptp(losses[:2].numpy()) == 0
