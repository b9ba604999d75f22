"""Score centering on a policy that can be enumerated: no drift where answers say nothing, nothing on-policy."""

import pytest
import torch

from megatron_nft.config import AlgorithmConfig
from megatron_nft.config.methods import METHODS
from megatron_nft.nft.centering import centering, with_rest
from megatron_nft.nft.methods import method_of

VOCABULARY = 7
LEFT_OUT = {"gspo", "topr"}
"""Whose ratio is an answer's."""
METHODS_WITH_TOKENS = [name for name in METHODS if name not in LEFT_OUT]


def policies(drift):
    torch.manual_seed(3)
    logits = torch.randn(VOCABULARY, dtype=torch.float64)
    return logits, (logits + drift * torch.randn(VOCABULARY, dtype=torch.float64)).log_softmax(0)


def expected_gradient(name, verdict_of, *, drift, top=VOCABULARY, centred=True, **settings):
    """Over the sampler, of one token's loss with respect to the logits of the policy."""
    logits, sampler = policies(drift)
    logits = logits.clone().requires_grad_()
    now = logits.log_softmax(0)
    algorithm = AlgorithmConfig(name=name, old_logprobs="engine", **settings)
    verdicts = torch.tensor([float(verdict_of(v)) for v in range(VOCABULARY)], dtype=torch.float64)
    columns = {
        "old_logprobs": sampler,
        "engine_logprobs": sampler,
        "verdict": verdicts,
        "correct_rate": torch.full((VOCABULARY,), 0.3, dtype=torch.float64),
        "advantage": 2 * verdicts - 0.6,
        "sequence_id": torch.arange(VOCABULARY),
    }
    method = method_of(algorithm)
    losses = method.losses(now, columns, algorithm)
    if centred:
        ids = sampler.argsort(descending=True)[:top].expand(VOCABULARY, top)
        term = centering(now[ids], sampler[ids], columns, method, algorithm)
        assert torch.equal(term.detach(), torch.zeros(VOCABULARY).double()), "the loss's value is the method's"
        losses = losses + term
    (sampler.exp() * losses).sum().backward()
    return logits.grad


@pytest.mark.parametrize("verdict", [0, 1])
@pytest.mark.parametrize("name", METHODS_WITH_TOKENS)
def test_where_an_answer_says_nothing_of_the_token_nothing_is_learned(name, verdict):
    """The drift is all of the gradient, and it is gone; without centering it is there."""
    found = expected_gradient(name, lambda v: verdict, drift=0.5)
    assert found.abs().max() < 1e-6
    pushes = method_pushes(name, verdict)
    assert (expected_gradient(name, lambda v: verdict, drift=0.5, centred=False).abs().max() > 1e-3) == pushes


def method_pushes(name, verdict):
    """Whether a method learns from such answers, by other than the importance ratio, which has no drift."""
    return name != "cispo" and not (
        (name in ("rft", "rft_script", "psr") and verdict == 0) or (name == "nsr" and verdict == 1)
    )


@pytest.mark.parametrize("name", METHODS_WITH_TOKENS)
@pytest.mark.parametrize("top", [2, VOCABULARY])
def test_on_policy_nothing_changes(name, top):
    plain = expected_gradient(name, lambda v: v % 2, drift=0.0, centred=False)
    torch.testing.assert_close(expected_gradient(name, lambda v: v % 2, drift=0.0, top=top), plain, rtol=0, atol=1e-6)


def test_by_hand():
    """The covariance of weight and score under the sampler: AsymRE's weights are the advantages."""
    logits, sampler = policies(0.5)
    now, q = logits.log_softmax(0), sampler.exp()
    scores = torch.eye(VOCABULARY).double() - now.exp()  # dlog p(v) / dlogits
    weights = 2.0 * (torch.arange(VOCABULARY) % 2) - 0.6
    by_hand = -(q * weights) @ (scores - q @ scores)
    found = expected_gradient("asymre", lambda v: v % 2, drift=0.5)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-6)


def test_nfts_weights_by_hand():
    logits, sampler = policies(0.5)
    now, q, p = logits.log_softmax(0), sampler.exp(), 0.3
    ratios, scores = (now - sampler).exp(), torch.eye(VOCABULARY).double() - logits.softmax(0)
    right = torch.full((VOCABULARY,), 0.7).double()
    wrong = -0.7 * 0.5 * (p * ratios / (1 - p)) / ((1 - p * ratios) / (1 - p)).clamp(min=1.0)
    by_hand = torch.zeros(VOCABULARY).double()
    for v in range(VOCABULARY):
        weights = right if v % 2 else wrong
        by_hand -= q[v] * (weights[v] * scores[v] - (q * weights) @ scores)
    found = expected_gradient("nft", lambda v: v % 2, drift=0.5, neg_weight=0.5)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-6)


def test_fewer_tokens_leave_less_out():
    """The more of the sampler is known, the nearer to the whole."""
    whole = expected_gradient("nft", lambda v: 1, drift=0.3)
    plain = (expected_gradient("nft", lambda v: 1, drift=0.3, centred=False) - whole).norm()
    left = [(expected_gradient("nft", lambda v: 1, drift=0.3, top=k) - whole).norm() for k in (1, 3, 5, 6)]
    assert left[-1] < 1e-6 and left[0] < plain and left[2] < 0.5 * plain


def test_extremes_are_finite():
    for logprobs in ([0.0, -200.0], [-1e-9, -21.0], [float("-inf"), 0.0], [-120.0, -0.1]):
        engine = torch.tensor([logprobs], dtype=torch.float32)
        for name in METHODS_WITH_TOKENS:
            now = torch.tensor([[-0.5, -1.5]], requires_grad=True)
            algorithm = AlgorithmConfig(name=name)
            columns = {
                key: torch.zeros(1)
                for key in ("old_logprobs", "engine_logprobs", "verdict", "correct_rate", "advantage", "sequence_id")
            }
            term = centering(now, engine, columns, method_of(algorithm), algorithm)
            term.sum().backward()
            assert now.grad.isfinite().all(), (name, logprobs)
    assert with_rest(torch.tensor([[0.0, -50.0]])).isfinite().all()
