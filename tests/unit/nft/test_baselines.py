"""GRPO, Dr. GRPO and DAPO by hand; NFT on-policy is GRPO and MaxRL; RFT ignores wrong answers; KL."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.groups import to_sequences
from megatron_nft.nft.loss import clipped_loss, clipped_tokens, kl_divergence, nft_loss
from megatron_nft.nft.rewards import advantages, rewards
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict


def loss_and_gradient(ratio, advantage, **clip):
    logprobs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss = clipped_loss(logprobs, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage]).double(), **clip)
    loss.sum().backward()
    return loss.item(), logprobs.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside the clip range: -R A, and its gradient is the same
        (1.5, 2.0, -2.4, 0.0),  # an advantage that was taken already: clipped at 1.2
        (0.5, 2.0, -1.0, -1.0),  # a right answer that became unlikelier: never clipped
        (0.5, -2.0, 1.6, 0.0),  # a wrong one, unlikely enough: clipped at 0.8
        (1.5, -2.0, 3.0, 3.0),  # a wrong one that became likelier: never clipped
    ],
)
def test_clipped_loss_by_hand(ratio, advantage, loss, gradient):
    assert loss_and_gradient(ratio, advantage) == pytest.approx((loss, gradient), abs=1e-9)


def test_dapo_clips_higher():
    assert loss_and_gradient(1.25, 1.0) == pytest.approx((-1.2, 0.0))
    assert loss_and_gradient(1.25, 1.0, clip_high=0.28) == pytest.approx((-1.25, -1.25))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-1e4, -12.0, 12.0])
def test_extreme_ratios_are_finite(log_ratio, advantage):
    old = torch.tensor([-1e4 if log_ratio > 0 else 0.0], dtype=torch.float64)
    logprobs = (old + log_ratio).requires_grad_()
    loss = clipped_loss(logprobs, old, torch.tensor([advantage]).double())
    loss.sum().backward()
    # min(R A, clip(R) A) with the cap of log R at 10.
    ratio = math.exp(min(log_ratio, 10.0))
    assert loss.item() == pytest.approx(-min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage), rel=1e-9)
    assert logprobs.grad.isfinite().all()


def test_clipped_loss_against_finite_differences():
    torch.manual_seed(0)
    old = -torch.rand(12, dtype=torch.float64) * 3
    # Away from the corners of min and clip, where the loss has no derivative.
    moves = torch.tensor([-0.5, -0.1, 0.05, 0.1, 0.4, 0.7] * 2, dtype=torch.float64)
    weights = torch.cat([torch.full((6,), 1.3), torch.full((6,), -0.7)]).double()
    logprobs = (old + moves).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_loss(x, old, weights, clip_high=0.28), logprobs)


def test_clipped_tokens_by_hand():
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0, 4.0]).log()
    signs = torch.tensor([1.0, -1, 1, -1, 1, -1])
    clips = {"clip_low": 0.2, "clip_high": 0.2}
    assert clipped_tokens(ratios, torch.zeros(6), signs, **clips).tolist() == [True, False, False, True, False, False]
    assert clipped_tokens(ratios, torch.zeros(6), signs, dual_clip=3.0, **clips).tolist()[-1]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [(4.0, -2.0, 6.0, 0.0), (2.5, -2.0, 5.0, 5.0), (0.5, -2.0, 1.6, 0.0), (4.0, 2.0, -2.4, 0.0)],
)
def test_dual_clip_by_hand(ratio, advantage, loss, gradient):
    """Of 3: a wrong answer's token that is likelier than that counts 3 times its advantage, and is not pushed."""
    assert loss_and_gradient(ratio, advantage, dual_clip=3.0) == pytest.approx((loss, gradient), abs=1e-9)


def test_advantages_by_hand():
    rewards_G = np.array([1.0, 0, 0, 0])
    assert advantages(rewards_G, 1).tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])
    deviation = math.sqrt(0.25 * 0.75)
    assert advantages(rewards_G, 2).tolist() == pytest.approx([0.75 / deviation] + [-0.25 / deviation] * 3)
    assert advantages(np.ones(3), 2).tolist() == [0, 0, 0]
    assert advantages(rewards_G, 3).tolist() == pytest.approx([3, -1, -1, -1])  # (r - p) / p
    with pytest.raises(ValueError, match="normalize = 0: choose 1"):
        advantages(rewards_G, 0)


def group(answers):
    """A judged group of (is right, number of tokens)."""
    prompt = Prompt(
        prompt_id="p/0", text="?", token_ids_P=np.array([1], np.int32), ground_truth="2", data_source="test"
    )
    rollouts = tuple(
        Rollout(
            text="2",
            token_ids_A=np.full(n, 7, np.int32),
            engine_logprobs_A=np.zeros(n, np.float32),
            truncated=False,
            policy_version=0,
        )
        for _, n in answers
    )
    verdicts = tuple(Verdict(kind="right" if right else "wrong") for right, _ in answers)
    return RolloutGroup(prompt=prompt, rollouts=rollouts, verdicts=verdicts)


def test_soft_overlong_punishment_by_hand():
    """DAPO's equation 13, limit 100 and last part 20, on rewards of 1 and 0: half as large as on 1 and -1."""
    judged = group([(True, 80), (True, 90), (True, 100), (False, 50), (False, 100)])
    plain = rewards(judged, max_answer_tokens=100)
    assert plain.tolist() == [1, 1, 1, 0, 0]
    shaped = rewards(judged, max_answer_tokens=100, penalty=1.0, share=0.2)
    assert shaped.tolist() == pytest.approx([1, 0.75, 0.5, 0, -0.5])
    unpunished = rewards(judged, max_answer_tokens=100, penalty=1.0, share=0)
    assert unpunished.tolist() == plain.tolist(), "DAPO at 7B"


def test_sequences_carry_the_methods_advantage():
    judged = group([(True, 100), (True, 10), (False, 10), (False, 10)])
    by_method = {
        name: [s.advantage for s in to_sequences(judged, AlgorithmConfig(name=name), max_answer_tokens=100)]
        for name in ("nft", "grpo", "dr_grpo", "dapo")
    }
    assert by_method["nft"] == [0, 0, 0, 0]
    assert by_method["grpo"] == pytest.approx([1, 1, -1, -1])
    assert by_method["dr_grpo"] == pytest.approx([0.5, 0.5, -0.5, -0.5])
    shaped = np.array([0.5, 1, 0, 0])
    assert by_method["dapo"] == pytest.approx(((shaped - shaped.mean()) / shaped.std()).tolist())


def on_policy_gradients(verdicts, normalize, **nft):
    """(NFT's, GRPO's) gradients with respect to log-probs at logprobs = old_logprobs, over one group."""
    count, rate = len(verdicts), float(np.mean(verdicts))
    old = -torch.rand(count, dtype=torch.float64)
    verdicts_T, rates_T = torch.tensor(verdicts).double(), torch.full((count,), rate, dtype=torch.float64)
    advantages_T = torch.from_numpy(advantages(np.array(verdicts, np.float64), normalize))
    gradients = []
    for loss in (
        lambda x: nft_loss(x, old, verdicts_T, rates_T, normalize=normalize, **nft),
        lambda x: clipped_loss(x, old, advantages_T),
    ):
        logprobs = old.clone().requires_grad_()
        loss(logprobs).sum().backward()
        gradients.append(logprobs.grad)
    return gradients


mixed = st.lists(st.booleans(), min_size=2, max_size=32).filter(lambda v: 0 < sum(v) < len(v))


@given(verdicts=mixed, normalize=st.sampled_from([1, 2, 3]))
@settings(max_examples=200, deadline=None)
def test_on_policy_nft_is_grpo_and_the_constant_is_one(verdicts, normalize):
    nft, grpo = on_policy_gradients([float(v) for v in verdicts], normalize)
    torch.testing.assert_close(nft, grpo, rtol=1e-6, atol=0)


@given(verdicts=mixed, weight=st.floats(0.0, 3.0))
@settings(max_examples=100, deadline=None)
def test_neg_weight_is_linear_in_wrong_answers_and_silent_on_right_ones(verdicts, weight):
    floats = [float(v) for v in verdicts]
    full, _ = on_policy_gradients(floats, 1)
    part, _ = on_policy_gradients(floats, 1, neg_weight=weight)
    wrong = ~torch.tensor(verdicts)
    torch.testing.assert_close(part[wrong], weight * full[wrong], rtol=1e-9, atol=1e-12)
    assert torch.equal(part[~wrong], full[~wrong])


def test_rft_has_no_gradient_from_wrong_answers():
    torch.manual_seed(0)
    old = -torch.rand(20)
    logprobs = (old + 0.5 * torch.randn(20)).requires_grad_()
    verdicts = (torch.arange(20) % 2).float()
    nft_loss(logprobs, old, verdicts, torch.full((20,), 0.3), neg_weight=0.0).sum().backward()
    assert torch.equal(logprobs.grad[verdicts == 0], torch.zeros(10))
    assert (logprobs.grad[verdicts == 1] != 0).all()


def test_kl_by_hand_and_never_negative():
    values = kl_divergence(torch.tensor([-1.0, -2.0, -1e4]), torch.tensor([-1.0, -1.0, 0.0]))
    assert values[:2].tolist() == pytest.approx([0.0, math.e - 2], abs=1e-6)
    assert values.isfinite().all() and (values >= 0).all()


def test_kl_estimate_is_the_divergence_on_average():
    torch.manual_seed(0)
    policy, reference = (torch.randn(5, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = (policy.exp() * (policy - reference)).sum()
    average = (policy.exp() * kl_divergence(policy, reference)).sum()
    assert average.item() == pytest.approx(exact.item(), rel=1e-12)
