"""Hand-computed losses and gradients of nft/loss.py."""

import math

import pytest
import torch

from megatron_nft.nft.loss import MAX_LOG_RATIO, nft_loss, ratio_metrics


def loss_and_gradient(log_ratio, verdict, rate, **settings):
    old = torch.full((1,), -2.0, dtype=torch.float64)
    logprobs = (old + log_ratio).requires_grad_()
    verdicts, rates = torch.tensor([verdict], dtype=torch.float64), torch.tensor([rate], dtype=torch.float64)
    loss = nft_loss(logprobs, old, verdicts, rates, **settings)
    loss.sum().backward()
    return loss.item(), logprobs.grad.item()


def test_right_answer_is_weighted_log_ratio():
    loss, gradient = loss_and_gradient(math.log(1.2), 1.0, 0.25)
    assert loss == pytest.approx(-0.75 * math.log(1.2), abs=1e-12)
    assert gradient == pytest.approx(-0.75)


def test_wrong_answer_that_became_likelier_is_clipped_but_keeps_its_gradient():
    # (1 - 0.5 * 1.2) / 0.5 = 0.8 < 1: the value is clipped to log 1 = 0; the gradient of -w log x at the clipped value
    # x = 1 is w * p R / (1 - p) = 0.5 * 0.5 * 1.2 / 0.5.
    loss, gradient = loss_and_gradient(math.log(1.2), 0.0, 0.5)
    assert loss == pytest.approx(0.0, abs=1e-12)
    assert gradient == pytest.approx(0.6)


def test_wrong_answer_that_became_unlikelier_is_not_clipped():
    # (1 - 0.5 * 0.8) / 0.5 = 1.2; loss -0.5 log 1.2; gradient 0.5 * (0.5 * 0.8 / 0.5) / 1.2.
    loss, gradient = loss_and_gradient(math.log(0.8), 0.0, 0.5)
    assert loss == pytest.approx(-0.5 * math.log(1.2), abs=1e-12)
    assert gradient == pytest.approx(0.5 * 0.8 / 1.2)


def test_lower_clamp_lets_the_value_through():
    loss, _ = loss_and_gradient(math.log(1.2), 0.0, 0.5, clamp_negative=0.5)
    assert loss == pytest.approx(-0.5 * math.log(0.8), abs=1e-12)


@pytest.mark.parametrize(("normalize", "weight"), [(0, 1.0), (1, 0.8), (2, 2.0)])
def test_prompt_weights(normalize, weight):
    loss, _ = loss_and_gradient(math.log(1.1), 1.0, 0.2, normalize=normalize)
    assert loss == pytest.approx(-weight * math.log(1.1), abs=1e-12)


def test_neg_weight_scales_wrong_answers_only():
    assert loss_and_gradient(-0.1, 0.0, 0.5, neg_weight=0.0) == (0.0, 0.0)
    half, full = (loss_and_gradient(-0.1, 0.0, 0.5, neg_weight=w) for w in (0.5, 1.0))
    assert [2 * x for x in half] == pytest.approx(full)
    assert loss_and_gradient(-0.1, 1.0, 0.5, neg_weight=0.0) == loss_and_gradient(-0.1, 1.0, 0.5)


def test_sequence_ratio_is_the_product_of_token_ratios():
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.1, -2.3, -0.4], dtype=torch.float64)
    verdicts, rates = torch.tensor([1.0, 1.0, 0.0]), torch.full((3,), 0.5)
    losses = nft_loss(logprobs, old, verdicts, rates, normalize=0, sequence_ids_T=torch.tensor([0, 0, 1]))
    # Answer 0: log ratio 0.1 + 0.3 on each of its two tokens. Answer 1: ratio e^-0.1.
    assert losses.tolist() == pytest.approx([-0.4, -0.4, -math.log((1 - 0.5 * math.exp(-0.1)) / 0.5)], abs=1e-7)


@pytest.mark.parametrize("verdict", [0.0, 1.0])
@pytest.mark.parametrize("rate", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("log_ratio", [-1e4, -12.0, 12.0])
def test_extreme_ratios_stay_finite(log_ratio, rate, verdict):
    """Finite, and as the equation says: p within [0.02, 0.98], log R at most 10, w(q) = 1 - p, eps = 1."""
    loss, gradient = loss_and_gradient(log_ratio, verdict, rate)
    assert math.isfinite(loss) and math.isfinite(gradient)
    p, capped = min(max(rate, 0.02), 0.98), min(log_ratio, MAX_LOG_RATIO)
    implicit = max((1 - p * math.exp(capped)) / (1 - p), 1.0)
    expected = -(1 - p) * (capped if verdict == 1.0 else math.log(implicit))
    assert loss == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("verdict", [0.0, 1.0])
def test_log_probs_of_minus_ten_thousand(verdict):
    """Impossible tokens, before and now: the ratio alone counts."""
    old = torch.full((3,), -1e4)
    logprobs = (old + torch.tensor([0.0, -0.25, 0.25])).requires_grad_()
    losses = nft_loss(logprobs, old, torch.full((3,), verdict), torch.full((3,), 0.5), normalize=0)
    losses.sum().backward()
    ratios = [1.0, math.exp(-0.25), math.exp(0.25)]
    expected = [-math.log(r if verdict else max(2 - r, 1.0)) for r in ratios]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("eps", [1.0, 0.01])
def test_the_clamp_is_exact_in_single_precision(eps):
    """p R of 1e6 and more: the clipped value must be eps itself, not the rounding error of a difference."""
    logprobs = torch.tensor([9.9, 12.0], requires_grad=True)
    losses = nft_loss(logprobs, torch.zeros(2), torch.zeros(2), torch.full((2,), 0.98), normalize=0, clamp_negative=eps)
    assert losses.tolist() == pytest.approx([-math.log(eps)] * 2, abs=1e-6)


def test_gradient_equals_finite_differences_where_nothing_is_clipped():
    torch.manual_seed(0)
    old = -torch.rand(8, dtype=torch.float64) * 3
    logprobs = (old - 0.3 * torch.rand(8, dtype=torch.float64)).requires_grad_()
    verdicts, rates = (torch.arange(8) % 2).double(), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: nft_loss(x, old, verdicts, rates), logprobs)


def test_unknown_normalize_is_refused():
    with pytest.raises(ValueError, match="normalize = 4"):
        loss_and_gradient(0.0, 1.0, 0.5, normalize=4)


def test_ratio_metrics_by_hand():
    old = torch.zeros(3)
    sums = ratio_metrics(
        torch.tensor([0.0, math.log(2.0), math.log(0.5)]), old, torch.tensor([1.0, 0.0, 0.0]), torch.full((3,), 0.5),
        clamp_negative=1.0,
    )  # fmt: skip
    assert sums["ratio_sum"].item() == pytest.approx(3.5)
    assert sums["ratio_max"].item() == pytest.approx(2.0)
    assert sums["clamped"].item() == 1 and sums["wrong_tokens"].item() == 2
    assert (sums["right_moved"].item(), sums["right_tokens"].item()) == (0, 1)
    assert (sums["wrong_moved"].item(), sums["wrong_logprobs"].item()) == pytest.approx((0, 0), abs=1e-6)
