"""One two-way table per model family: Megatron parameter <-> HF tensors, and how each is cut over ranks.

Used in both directions: `Layout.parts` says where a rank's shard lies in the HF tensors (weight sync, export),
`Layout.to_shard` cuts one rank's shard out of HF tensors (loading). Called by weights/gather.py and
actor/hf_weights.py. Knows tensors and names only: no Megatron, no process groups.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_nft.families.hf_config import HFConfig

VOCAB_MULTIPLE = 64
"""Rows of the embedding are padded to a multiple of this times tp: whole tiles for the GPU's matrix kernels."""


class MappingError(KeyError):
    """A parameter that the family's table doesn't name."""


@dataclass(frozen=True)
class Part:
    """A piece of one rank's shard, and its place in an HF tensor."""

    shape: tuple[int, ...]  # of the whole HF tensor
    where: tuple[slice, ...]  # the piece's place in it
    piece: Tensor  # a view of the shard; its axes may be finer than the HF tensor's, in the same order

    def copy_to(self, tensor: Tensor) -> None:
        """Writes the piece into its place in the HF tensor, cast to that tensor's dtype."""
        place = tensor[self.where]
        (place if place.shape == self.piece.shape else place.view(self.piece.shape)).copy_(self.piece)


@dataclass(frozen=True)
class Layout:
    """How HF tensors lie in a Megatron parameter.

    parts: a shard, its rank, number of ranks -> its part of each HF tensor, in the rule's order. The parts of all ranks
        fill the HF tensors, each place once.
    to_shard: HF tensors, rank, number of ranks -> that rank's shard.
    """

    parts: Callable[[Tensor, int, int, HFConfig], list[Part]]
    to_shard: Callable[[Sequence[Tensor], int, int, HFConfig], Tensor]
    is_sharded: bool = True


@dataclass(frozen=True)
class Rule:
    """One line of a table. `{layer}` in a name stands for the layer's number, counted from 0 over the whole model."""

    megatron: str
    hf: tuple[str, ...]
    layout: Layout

    def hf_names(self, layer: str) -> list[str]:
        """HF names with the layer's number filled in ("" for parameters outside the layers)."""
        return [name.format(layer=layer) for name in self.hf]


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Rows of the embedding over all ranks: the vocabulary, padded to whole tiles on each rank."""
    multiple = VOCAB_MULTIPLE * tp
    return (vocab_size + multiple - 1) // multiple * multiple


def find_rule(megatron_name: str, hf: HFConfig) -> tuple[Rule, str]:
    """The rule for a parameter (with its global layer number in the name), and that number ("" outside the layers).

    Raises:
        MappingError: the family's table has no such parameter.
    """
    match = re.match(r"decoder\.layers\.(\d+)\.", megatron_name)
    layer = match.group(1) if match else ""
    pattern = megatron_name.replace(f"decoder.layers.{layer}.", "decoder.layers.{layer}.") if match else megatron_name
    rule = TABLES[hf.model_type].get(pattern)
    if rule is None:
        raise MappingError(f"no rule for parameter {megatron_name!r} in the table of {hf.model_type!r}")
    return rule, layer


# --- Layouts -------------------------------------------------------------------------------------------------------


def _rows(tensor: Tensor, rank: int, size: int) -> Tensor:
    return tensor.chunk(size, dim=0)[rank]


def _rows_part(piece: Tensor, num_rows: int, rest: Sequence[int], rank: int, size: int) -> Part:
    """The rank's share of `num_rows` rows of shape `rest`, all shares equal."""
    share = num_rows // size
    return Part((num_rows, *rest), (slice(rank * share, (rank + 1) * share),), piece)


def _whole_parts(shard: Tensor, rank: int, size: int, hf: HFConfig) -> list[Part]:
    return [Part(tuple(shard.shape), (), shard)]


def _vocab_parts(shard: Tensor, rank: int, size: int, hf: HFConfig) -> list[Part]:
    first = min(rank * len(shard), hf.vocab_size)
    end = min(first + len(shard), hf.vocab_size)  # beyond it there is padding
    return [Part((hf.vocab_size, *shard.shape[1:]), (slice(first, end),), shard[: end - first])]


def _vocab_to_shard(tensors: Sequence[Tensor], rank: int, size: int, hf: HFConfig) -> Tensor:
    (table,) = tensors
    padding = padded_vocab_size(hf.vocab_size, size) - table.shape[0]
    return _rows(torch.cat([table, table.new_zeros(padding, *table.shape[1:])]), rank, size)


def _columns_parts(shard: Tensor, rank: int, size: int, hf: HFConfig) -> list[Part]:
    rows, columns = shard.shape
    return [Part((rows, columns * size), (slice(None), slice(rank * columns, (rank + 1) * columns)), shard)]


def _columns_to_shard(tensors: Sequence[Tensor], rank: int, size: int, hf: HFConfig) -> Tensor:
    return tensors[0].chunk(size, dim=1)[rank]


def _gate_up_parts(shard: Tensor, rank: int, size: int, hf: HFConfig) -> list[Part]:
    return [_rows_part(half, len(half) * size, half.shape[1:], rank, size) for half in shard.chunk(2)]


def _gate_up_to_shard(tensors: Sequence[Tensor], rank: int, size: int, hf: HFConfig) -> Tensor:
    return torch.cat([_rows(tensor, rank, size) for tensor in tensors])


def _qkv_parts(shard: Tensor, rank: int, size: int, hf: HFConfig) -> list[Part]:
    """Megatron lies [group][its query heads, key head, value head]; HF has all queries, all keys, all values."""
    rest, queries = shard.shape[1:], hf.num_attention_heads // hf.num_key_value_heads
    groups = shard.view(hf.num_key_value_heads // size, (queries + 2) * hf.head_dim, *rest)
    pieces = groups.split([queries * hf.head_dim, hf.head_dim, hf.head_dim], dim=1)
    return [
        _rows_part(piece, heads * hf.head_dim, rest, rank, size)
        for piece, heads in zip(
            pieces, (hf.num_attention_heads, hf.num_key_value_heads, hf.num_key_value_heads), strict=True
        )
    ]


def _qkv_to_shard(tensors: Sequence[Tensor], rank: int, size: int, hf: HFConfig) -> Tensor:
    parts = [tensor.view(hf.num_key_value_heads, -1, *tensor.shape[1:]) for tensor in tensors]
    fused = torch.cat(parts, dim=1)
    return _rows(fused, rank, size).reshape(-1, *fused.shape[2:])


WHOLE = Layout(_whole_parts, lambda tensors, rank, size, hf: tensors[0], is_sharded=False)
VOCAB = Layout(_vocab_parts, _vocab_to_shard)
COLUMNS = Layout(_columns_parts, _columns_to_shard)
GATE_UP = Layout(_gate_up_parts, _gate_up_to_shard)
QKV = Layout(_qkv_parts, _qkv_to_shard)

# --- Tables --------------------------------------------------------------------------------------------------------

_MEGATRON, _HF = "decoder.layers.{layer}", "model.layers.{layer}"
_QKV = [f"{_HF}.self_attn.{x}_proj" for x in "qkv"]

LLAMA = [
    Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), VOCAB),
    Rule("output_layer.weight", ("lm_head.weight",), VOCAB),
    Rule("decoder.final_layernorm.weight", ("model.norm.weight",), WHOLE),
    Rule(f"{_MEGATRON}.self_attention.linear_qkv.weight", tuple(f"{x}.weight" for x in _QKV), QKV),
    Rule(f"{_MEGATRON}.self_attention.linear_proj.weight", (f"{_HF}.self_attn.o_proj.weight",), COLUMNS),
    Rule(f"{_MEGATRON}.mlp.linear_fc1.weight", (f"{_HF}.mlp.gate_proj.weight", f"{_HF}.mlp.up_proj.weight"), GATE_UP),
    Rule(f"{_MEGATRON}.mlp.linear_fc2.weight", (f"{_HF}.mlp.down_proj.weight",), COLUMNS),
    # The two norms stand by themselves in local layers, inside the linear that follows them in TransformerEngine's.
    Rule(f"{_MEGATRON}.input_layernorm.weight", (f"{_HF}.input_layernorm.weight",), WHOLE),
    Rule(f"{_MEGATRON}.self_attention.linear_qkv.layer_norm_weight", (f"{_HF}.input_layernorm.weight",), WHOLE),
    Rule(f"{_MEGATRON}.pre_mlp_layernorm.weight", (f"{_HF}.post_attention_layernorm.weight",), WHOLE),
    Rule(f"{_MEGATRON}.mlp.linear_fc1.layer_norm_weight", (f"{_HF}.post_attention_layernorm.weight",), WHOLE),
]

QWEN2 = [*LLAMA, Rule(f"{_MEGATRON}.self_attention.linear_qkv.bias", tuple(f"{x}.bias" for x in _QKV), QKV)]

QWEN3 = [
    *LLAMA,
    Rule(f"{_MEGATRON}.self_attention.q_layernorm.weight", (f"{_HF}.self_attn.q_norm.weight",), WHOLE),
    Rule(f"{_MEGATRON}.self_attention.k_layernorm.weight", (f"{_HF}.self_attn.k_norm.weight",), WHOLE),
]

_FAMILIES = {"qwen2": QWEN2, "qwen3": QWEN3, "llama": LLAMA, "mistral": LLAMA}
TABLES: dict[str, dict[str, Rule]] = {
    family: {rule.megatron: rule for rule in rules} for family, rules in _FAMILIES.items()
}
