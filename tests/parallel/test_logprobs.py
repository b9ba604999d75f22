"""Vocab-parallel, blockwise log-probs against torch's own log_softmax of the whole vocabulary."""

import pytest
import torch
import torch.distributed as dist

from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel
TOKENS, HIDDEN, TEMPERATURE = 37, 16, 0.7


def inputs(vocab_size, dtype):
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=random).to(dtype)
    weight = torch.randn(vocab_size, HIDDEN, generator=random).to(dtype)
    labels = torch.randint(0, vocab_size, (TOKENS,), generator=random)
    upstream = torch.randn(TOKENS, generator=random)  # the loss's gradient of each log-prob
    return hidden, weight, labels, upstream


def oracle(vocab_size, dtype):
    """In double precision, from the same (rounded) inputs."""
    hidden, weight, labels, upstream = inputs(vocab_size, dtype)
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logprobs = torch.log_softmax(hidden @ weight.T / TEMPERATURE, -1)
    entropies = -(logprobs.exp() * logprobs).sum(-1).detach()
    picked = logprobs.gather(1, labels[:, None])[:, 0]
    picked.backward(upstream.double())
    return picked.detach(), entropies, hidden.grad, weight.grad


def several_labels(hidden, own, labels, logprobs, vocab_size, block):
    """A token's label, its neighbour, and the label again: each as by itself, and gradients that sum theirs."""
    from megatron_nft.actor.logprobs import label_logprobs

    given = {"temperature": TEMPERATURE, "vocab_size": vocab_size, "group": dist.group.WORLD}
    given |= {"logits_bytes": 4 * TOKENS * block}
    upstream = torch.randn(TOKENS, 3, generator=torch.Generator().manual_seed(1))
    labels_OL = torch.stack([labels, (labels + 1) % vocab_size, labels], 1)
    hidden, own = hidden.requires_grad_(), own.detach().requires_grad_()
    together, _ = label_logprobs(hidden, own, labels_OL, **given)
    assert torch.equal(together[:, 0], logprobs) and torch.equal(together[:, 2], logprobs)
    wanted = torch.autograd.grad(together, (hidden, own), upstream)
    found = [torch.zeros_like(x, dtype=torch.float64) for x in wanted]
    for place in range(3):
        alone, _ = label_logprobs(hidden, own, labels_OL[:, place], **given)
        for total, part in zip(found, torch.autograd.grad(alone, (hidden, own), upstream[:, place]), strict=True):
            total += part
    for total, expected in zip(found, wanted, strict=True):
        scale = 1e-5 if expected.dtype == torch.float32 else 2e-2
        assert (total - expected).norm() <= scale * expected.double().norm()


def by_rank(rank, master, vocab_size, padded, dtype, block):
    """This rank's rows of the weight, with rows beyond the vocabulary that must have no say."""
    torch.set_num_threads(1)
    from megatron_nft.actor.logprobs import label_logprobs

    world_size = 2 if padded % 2 == 0 else 1
    dist.init_process_group("gloo", init_method=f"tcp://{master}", rank=rank, world_size=world_size)
    hidden, weight, labels, upstream = inputs(vocab_size, dtype)
    rows = torch.full((padded, HIDDEN), 50.0, dtype=dtype)
    rows[:vocab_size] = weight
    own = rows.chunk(world_size)[rank].clone().requires_grad_()
    hidden.requires_grad_()
    logprobs, entropies = label_logprobs(
        hidden,
        own,
        labels,
        temperature=TEMPERATURE,
        vocab_size=vocab_size,
        group=dist.group.WORLD,
        logits_bytes=4 * TOKENS * block,
        with_entropy=True,
    )
    once = torch.autograd.grad(logprobs, (hidden, own), upstream, retain_graph=True)
    logprobs.backward(upstream)  # a second time: with what it kept for the first one gone
    for first, second in zip(once, (hidden.grad, own.grad), strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5 if dtype == torch.float32 else 2e-2)
    dist.all_reduce(hidden.grad)  # as HiddenOutput's backward does
    alone, no_entropies = label_logprobs(
        hidden, own, labels, temperature=TEMPERATURE, vocab_size=vocab_size, group=dist.group.WORLD, logits_bytes=1
    )
    assert no_entropies is None and torch.allclose(alone, logprobs, atol=1e-6)
    empty, _ = label_logprobs(
        hidden[:0], own, labels[:0], temperature=1.0, vocab_size=vocab_size, group=dist.group.WORLD, logits_bytes=1
    )
    assert empty.shape == (0,)
    several_labels(hidden.detach(), own, labels, logprobs, vocab_size, block)
    dist.destroy_process_group()
    return [x.detach().float().numpy() for x in (logprobs, entropies, hidden.grad, own.grad)]


@pytest.mark.parametrize(
    ("vocab_size", "padded", "dtype", "block"),
    [
        (301, 301, torch.float32, 50),
        (301, 384, torch.float32, 60),  # the second rank's slice ends in padding
        (100, 256, torch.float32, 100),  # the second rank has nothing but padding
        (301, 384, torch.bfloat16, 60),
        (301, 301, torch.float32, 301),  # one block, which is kept for the backward pass
        (301, 384, torch.float32, 192),
        (301, 384, torch.bfloat16, 192),
    ],
)
def test_values_and_gradients_equal_those_of_the_whole_vocabulary(vocab_size, padded, dtype, block):
    world_size = 2 if padded % 2 == 0 else 1
    ranks = run_ranks(world_size, by_rank, vocab_size, padded, dtype, block)
    logprobs, entropies, grad_hidden, grad_weight = (x.float() for x in oracle(vocab_size, dtype))
    # bf16 products round to 8 bits: of a logit of 10 that is 0.03.
    atol, rtol = (1e-5, 1e-5) if dtype == torch.float32 else (0.06, 0.02)
    for rank in ranks:
        torch.testing.assert_close(torch.from_numpy(rank[0]), logprobs, atol=atol, rtol=0)
        torch.testing.assert_close(torch.from_numpy(rank[1]), entropies, atol=atol, rtol=0)
        assert _distance(torch.from_numpy(rank[2]), grad_hidden) < rtol
    whole = torch.cat([torch.from_numpy(rank[3]) for rank in ranks])
    assert _distance(whole[:vocab_size], grad_weight) < rtol
    assert not whole[vocab_size:].any()


def _distance(mine, expected):
    return ((mine - expected).norm() / expected.norm()).item()
