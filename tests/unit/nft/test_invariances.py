"""Properties that no input may break: order of tokens, split over microbatches, padding; for every method."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nft.nft.loss import clipped_loss, nft_loss

METHODS = {
    "nft": lambda x, t: nft_loss(x, t["old"], t["verdicts"], t["rates"]),
    "nft 0.5, normalize 2": lambda x, t: nft_loss(x, t["old"], t["verdicts"], t["rates"], neg_weight=0.5, normalize=2),
    "nft, low clamp": lambda x, t: nft_loss(x, t["old"], t["verdicts"], t["rates"], clamp_negative=1e-3),
    "rft": lambda x, t: nft_loss(x, t["old"], t["verdicts"], t["rates"], neg_weight=0.0),
    "sequence ratio": lambda x, t: nft_loss(x, t["old"], t["verdicts"], t["rates"], sequence_ids_T=t["ids"]),
    "dapo": lambda x, t: clipped_loss(x, t["old"], t["advantages"], clip_high=0.28),
}


@st.composite
def answers(draw, dtype=torch.float64):
    """A batch of answers as tensors over tokens, any ratios, and the policy's log-probs."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    count = sum(lengths)
    finite = st.floats(-30, 0)
    moves = st.one_of(st.floats(-15, 15), st.just(0.0))
    old = torch.tensor(draw(st.lists(finite, min_size=count, max_size=count)), dtype=dtype)
    move = torch.tensor(draw(st.lists(moves, min_size=count, max_size=count)), dtype=dtype)
    repeats = torch.tensor(lengths)

    def per_answer(strategy):
        values = draw(st.lists(strategy, min_size=len(lengths), max_size=len(lengths)))
        return torch.tensor(values, dtype=dtype).repeat_interleave(repeats)

    return old + move, {
        "old": old,
        "verdicts": per_answer(st.sampled_from([0.0, 1.0])),
        "rates": per_answer(st.floats(0.0, 1.0)),
        "advantages": per_answer(st.floats(-3, 3)),
        "ids": torch.arange(len(lengths)).repeat_interleave(repeats),
    }


def losses_and_gradients(method, logprobs, tensors):
    x = logprobs.clone().requires_grad_()
    losses = METHODS[method](x, tensors)
    losses.sum().backward()
    return losses.detach(), x.grad


@given(batch=answers())
@settings(max_examples=60, deadline=None)
def test_losses_and_gradients_are_finite(batch):
    for method in METHODS:
        losses, gradients = losses_and_gradients(method, *batch)
        assert losses.isfinite().all() and gradients.isfinite().all(), method


@given(batch=answers(dtype=torch.float32))
@settings(max_examples=60, deadline=None)
def test_finite_in_single_precision_too(batch):
    for method in METHODS:
        losses, gradients = losses_and_gradients(method, *batch)
        assert losses.isfinite().all() and gradients.isfinite().all(), method


@given(batch=answers(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_order_of_tokens_changes_nothing(batch, seed):
    logprobs, tensors = batch
    order = torch.randperm(len(logprobs), generator=torch.Generator().manual_seed(seed))
    for method in METHODS:
        losses, gradients = losses_and_gradients(method, logprobs, tensors)
        moved = losses_and_gradients(method, logprobs[order], {k: v[order] for k, v in tensors.items()})
        torch.testing.assert_close(moved[0], losses[order], rtol=1e-12, atol=1e-12, msg=method)
        torch.testing.assert_close(moved[1], gradients[order], rtol=1e-9, atol=1e-12, msg=method)


@given(batch=answers(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_split_over_microbatches_changes_nothing(batch, data):
    logprobs, tensors = batch
    cut = data.draw(st.integers(0, int(tensors["ids"].max()) + 1))
    parts = [tensors["ids"] < cut, tensors["ids"] >= cut]
    for method in METHODS:
        losses, gradients = losses_and_gradients(method, logprobs, tensors)
        for part in parts:
            own = {k: v[part] for k, v in tensors.items()}
            if part.any():
                own["ids"] = own["ids"] - own["ids"].min()
            split = losses_and_gradients(method, logprobs[part], own)
            torch.testing.assert_close(split[0], losses[part], rtol=1e-12, atol=1e-12, msg=method)
            torch.testing.assert_close(split[1], gradients[part], rtol=1e-9, atol=1e-12, msg=method)


@given(batch=answers(), padding=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_padding_of_weight_zero_changes_nothing(batch, padding):
    """Padding as actor/packed.py makes it: tokens of an answer of their own, whose losses are multiplied by 0."""
    logprobs, tensors = batch
    fill = {"old": -1.0, "verdicts": 1.0, "rates": 0.5, "advantages": 0.0, "ids": int(tensors["ids"].max()) + 1}
    padded = {k: torch.cat([v, torch.full((padding,), fill[k], dtype=v.dtype)]) for k, v in tensors.items()}
    weights = torch.cat([torch.ones(len(logprobs)), torch.zeros(padding)]).double()
    for method in METHODS:
        losses, gradients = losses_and_gradients(method, logprobs, tensors)
        x = torch.cat([logprobs, torch.full((padding,), -math.pi, dtype=logprobs.dtype)]).requires_grad_()
        total = (weights * METHODS[method](x, padded)).sum()
        total.backward()
        torch.testing.assert_close(total.detach(), losses.sum(), rtol=1e-9, atol=1e-9, msg=method)
        torch.testing.assert_close(x.grad[: len(logprobs)], gradients, rtol=1e-9, atol=1e-12, msg=method)
        assert torch.equal(x.grad[len(logprobs) :], torch.zeros(padding, dtype=x.dtype))
