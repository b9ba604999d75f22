"""Causal attention over packed sequences on torch's scaled_dot_product_attention: the core attention of local layers.

Megatron-Core's own local attention takes no packed sequences, and TransformerEngine's needs CUDA. Packed queries, keys
and values come in as [T, heads, head_dim] with the bounds of the sequences; no token attends outside its own sequence.
Sequences of similar length share one padded call, so the cost is close to the sum of A^2 over the sequences and never
T^2. With context parallelism a rank has its share of every sequence's queries (actor/context.py), and all keys and
values are gathered. Used by actor/model.py where there is no TransformerEngine.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_nft.actor.context import ContextShare

MAX_PADDING = 1.25
"""Sequences share a call while its padded length total stays within this factor of the real one."""


@dataclass
class AttentionChunk:
    """Sequences of similar length: where their tokens lie, padded to the longest."""

    queries: Tensor  # int64 [num_sequences * most queries], in this rank's share of the pack; padding repeats the first
    keys: Tensor  # int64 [num_sequences * longest], in the gathered keys; padding repeats the sequence's first token
    real: Tensor  # int64: the positions in `queries` that are no padding
    mask: Tensor | None  # bool [num_sequences, 1, queries, keys]; None: a plain causal mask does
    num_sequences: int
    rows: slice | None  # of the pack, where equally long sequences lie end to end: then nothing needs to be gathered


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's bounds of packed sequences, and the plan of attention calls for them, made once per microbatch."""

    chunks: list[AttentionChunk] = field(default_factory=list)
    restore: Tensor | None = None  # int64 [T]: brings the chunks' outputs back into the pack's order; None: they are


def pack_bounds(lengths: list[int], device: torch.device, share: ContextShare | None = None) -> PackedSeqParams:
    """Bounds of sequences of these lengths (tokens), lying end to end; an attention plan where there is no CUDA.

    Args:
        share: this rank's tokens under context parallelism; None: all.
    """
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
    share = share or ContextShare(lengths)
    chunks = [_plan_chunk(members, lengths, starts, share) for members in _similar_lengths(lengths)]
    tokens = torch.cat([chunk.queries[chunk.real] for chunk in chunks])
    is_in_order = bool((tokens[1:] > tokens[:-1]).all())
    return PackedSequences(**params, chunks=chunks, restore=None if is_in_order else tokens.argsort())


def _plan_chunk(members: list[int], lengths: list[int], starts: Tensor, share: ContextShare) -> AttentionChunk:
    length = torch.tensor([lengths[m] for m in members])[:, None]
    start = starts[members][:, None]
    position, is_real = share.positions(length)  # of this rank's tokens in their sequences
    column = torch.arange(int(length.max()))
    keys = torch.where(column < length, start + column, start)
    # Whole sequences lie in order, and what pads them comes last: torch's own causal mask is right, and faster.
    mask = None if share.size == 1 else column <= position[:, None, :, None]
    is_end_to_end = bool((start[1:] == start[:-1] + length[:-1]).all() and (length == length[0]).all())
    local_start = start // share.size
    queries = torch.where(is_real, local_start + torch.arange(position.shape[1]), local_start)
    return AttentionChunk(
        queries=queries.flatten(),
        keys=share.gathered_T[keys].flatten(),
        real=is_real.flatten().nonzero()[:, 0],
        mask=mask,
        num_sequences=len(members),
        rows=slice(int(start[0]), int(start[-1] + length[-1])) if is_end_to_end and share.size == 1 else None,
    )


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
        **megatron: Any,  # cp_comm_type, pg_collection ...
    ) -> None:
        super().__init__(config=config)
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
        """query [T, heads, d], key and value [T, kv_heads, d] -> [T, heads, d]; T: this rank's share of the tokens."""
        if self.config.context_parallel_size > 1:
            group = parallel_state.get_context_parallel_group()
            both = gather_from_sequence_parallel_region(torch.stack([key, value], 1), group=group)
            key, value = both.unbind(1)
        outputs = []
        for chunk in packed_seq_params.chunks:
            q = self._take(query, chunk.queries, chunk)
            k, v = (self._take(tensor, chunk.keys, chunk) for tensor in (key, value))
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=chunk.mask,
                is_causal=chunk.mask is None,
                scale=self.softmax_scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            out = out.transpose(1, 2).reshape(-1, *query.shape[1:])
            outputs.append(out if len(chunk.real) == len(chunk.queries) else out.index_select(0, chunk.real))
        joined = torch.cat(outputs)
        return joined if packed_seq_params.restore is None else joined.index_select(0, packed_seq_params.restore)

    @staticmethod
    def _take(tensor: Tensor, index: Tensor, chunk: AttentionChunk) -> Tensor:
        """[T, heads, d] -> [sequences, heads, longest, d]"""
        taken = tensor.index_select(0, index) if chunk.rows is None else tensor[chunk.rows]
        return taken.reshape(chunk.num_sequences, -1, *tensor.shape[1:]).transpose(1, 2)
