"""Packed attention against one sequence at a time."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("megatron.core")
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_nft.actor.attention import PackedCausalAttention, pack_bounds


@pytest.mark.parametrize("lengths", [[1], [7], [5, 5, 5], [1, 40, 3, 39, 2, 17], [64, 1, 1]])
def test_equals_one_sequence_at_a_time(lengths):
    torch.manual_seed(0)
    attention = PackedCausalAttention(
        TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4), 1, None, "self"
    )
    query, key, value = (torch.randn(sum(lengths), heads, 8, requires_grad=True) for heads in (4, 2, 2))
    out = attention(query, key, value, packed_seq_params=pack_bounds(lengths, torch.device("cpu")))
    expected = []
    for q, k, v in zip(*(t.split(lengths) for t in (query, key, value)), strict=True):
        q, k, v = (t.transpose(0, 1) for t in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)))
        expected.append(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1))
    expected = torch.cat(expected)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), (query, key, value))
    oracle = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for mine, theirs in zip(grads, oracle, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_padding_stays_within_its_bound():
    lengths = torch.randint(1, 400, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    bounds = pack_bounds(lengths, torch.device("cpu"))
    assert sum(len(chunk.queries) for chunk in bounds.chunks) <= 1.25 * sum(lengths)
    assert len(bounds.chunks) < 40, "similar lengths share a call"


def test_equally_long_sequences_are_not_gathered():
    bounds = pack_bounds([9, 9, 2], torch.device("cpu"))
    assert [chunk.rows for chunk in bounds.chunks] == [slice(0, 18), slice(18, 20)] and bounds.restore is None
    bounds = pack_bounds([2, 9, 9], torch.device("cpu"))
    assert [chunk.rows for chunk in bounds.chunks] == [slice(2, 20), slice(0, 2)] and bounds.restore is not None
