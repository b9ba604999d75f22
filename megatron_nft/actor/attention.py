"""Causal attention over packed sequences on torch's scaled_dot_product_attention: the core attention of local layers.

Megatron-Core's own local attention takes no packed sequences, and TransformerEngine's needs CUDA. Packed queries, keys
and values come in as [T, heads, head_dim] with the bounds of the sequences; no token attends outside its own sequence.
Sequences of similar length share one padded call, so the cost is close to the sum of A^2 over the sequences and never
T^2. Used by actor/model.py where there is no TransformerEngine.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

MAX_PADDING = 1.25
"""Sequences share a call while its padded length total stays within this factor of the real one."""


@dataclass
class AttentionChunk:
    """Sequences of similar length: where their tokens lie in the pack, padded to the longest."""

    index: Tensor  # int64 [num_sequences * max_length]; a padding slot repeats the sequence's first token
    real: Tensor  # int64: the positions in `index` that are no padding
    num_sequences: int


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's bounds of packed sequences, and the plan of attention calls for them, made once per microbatch."""

    chunks: list[AttentionChunk] = field(default_factory=list)
    restore: Tensor | None = None  # int64 [T]: brings the chunks' outputs back into the pack's order


def pack_bounds(lengths: list[int], device: torch.device) -> PackedSeqParams:
    """Bounds of sequences of these lengths (tokens), lying end to end; an attention plan where there is no CUDA."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    bounds = starts.to(device, torch.int32)
    params = {
        "qkv_format": "thd",
        "cu_seqlens_q": bounds,
        "cu_seqlens_kv": bounds,
        "max_seqlen_q": max(lengths),
        "max_seqlen_kv": max(lengths),
    }
    if device.type == "cuda":
        return PackedSeqParams(**params)
    chunks, tokens = [], []
    for members in _similar_lengths(lengths):
        longest = max(lengths[m] for m in members)
        column = torch.arange(longest)
        length = torch.tensor([lengths[m] for m in members])[:, None]
        is_real = column < length
        index = torch.where(is_real, starts[members][:, None] + column, starts[members][:, None])
        chunks.append(
            AttentionChunk(
                index=index.flatten(),
                real=is_real.flatten().nonzero()[:, 0],
                num_sequences=len(members),
            )
        )
        tokens.append(index[is_real])
    return PackedSequences(**params, chunks=chunks, restore=torch.cat(tokens).argsort())


def _similar_lengths(lengths: list[int]) -> list[list[int]]:
    """Sequence numbers, longest first, split so that padding stays within MAX_PADDING."""
    groups: list[list[int]] = []
    real = 0
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if groups:
            longest, size = lengths[groups[-1][0]], len(groups[-1])
            if longest * (size + 1) <= MAX_PADDING * (real + lengths[number]):
                groups[-1].append(number)
                real += lengths[number]
                continue
        groups.append([number])
        real = lengths[number]
    return groups


class PackedCausalAttention(MegatronModule):
    """Core attention of a local Megatron layer; the tensor-parallel rank sees its own heads only."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **megatron: Any,  # cp_comm_type, pg_collection ...: of no use without context parallelism
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size != 1:
            raise ValueError("local attention has no context parallelism")
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequences,
    ) -> Tensor:
        """query [T, heads, d], key and value [T, kv_heads, d] -> [T, heads, d]."""
        outputs = []
        for chunk in packed_seq_params.chunks:
            q, k, v = (self._take(tensor, chunk) for tensor in (query, key, value))
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            out = out.transpose(1, 2).reshape(-1, *query.shape[1:])
            outputs.append(out if len(chunk.real) == len(chunk.index) else out.index_select(0, chunk.real))
        return torch.cat(outputs).index_select(0, packed_seq_params.restore)

    @staticmethod
    def _take(tensor: Tensor, chunk: AttentionChunk) -> Tensor:
        """[T, heads, d] -> [sequences, heads, longest, d]"""
        return tensor.index_select(0, chunk.index).view(chunk.num_sequences, -1, *tensor.shape[1:]).transpose(1, 2)
