"""What Llama and the families that follow it share: a decoder of RMS norms, grouped-query attention, rope and SwiGLU.

A family's file says what differs: facts that config.json leaves out, keys that it must not have, and, where need be,
methods of its own. The keys are those of transformers' configuration classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_nft.families.family import HFConfig, ModelFolderError
from megatron_nft.families.rules import LOCAL, TRANSFORMER_ENGINE, Rule, columns, rows, vocabulary, whole

MEGATRON, HF = "decoder.layers.{layer}", "model.layers.{layer}"
ATTENTION, MLP = f"{MEGATRON}.self_attention", f"{MEGATRON}.mlp"
HF_QKV = tuple(f"{HF}.self_attn.{x}_proj" for x in "qkv")
HF_NORM, HF_MLP_NORM = (f"{HF}.input_layernorm.weight",), (f"{HF}.post_attention_layernorm.weight",)

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The rope scaling that Megatron-Core knows (RotaryEmbedding._apply_scaling), less its factor."""


@dataclass(frozen=True, kw_only=True)
class LlamaLike:
    """See families/family.py, `Family`."""

    model_type: str
    qkv_bias: bool = False
    """Queries, keys and values have a bias."""
    qk_norm: bool = False
    """Each head's queries and keys are normalised."""
    refused: Sequence[str] = ("attention_bias", "mlp_bias")
    """Keys of config.json that must not be true."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What keys mean that config.json leaves out, where it isn't what Llama means by that."""

    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        raw = {**self.defaults, **raw}
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        for key in self.refused:
            if raw.get(key):
                raise ModelFolderError(f"{file}: {key} = true is not supported")
        heads = raw["num_attention_heads"]
        return HFConfig(
            model_type=self.model_type,
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads", heads),
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            vocab_size=raw["vocab_size"],
            max_position_embeddings=raw["max_position_embeddings"],
            rms_norm_eps=raw["rms_norm_eps"],
            rope_theta=raw.get("rope_theta") or rope.get("rope_theta", 10000.0),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            rope_scaling_factor=_rope_scaling_factor(rope, file),
            sliding_window=raw.get("sliding_window") if raw.get("use_sliding_window") else None,
        )

    def rules(self, hf: HFConfig) -> list[Rule]:
        hidden, inner = hf.hidden_size, hf.intermediate_size
        queries, keys = hf.num_attention_heads * hf.head_dim, hf.num_key_value_heads * hf.head_dim
        # Megatron lies [group][its query heads, key head, value head]; HF has all queries, all keys, all values.
        qkv = partial(rows, queries, keys, keys, groups=hf.num_key_value_heads)
        gate_up, words = rows(inner, inner, of=(hidden,)), vocabulary(hf.vocab_size, hidden)
        table = [
            Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), words),
            Rule("decoder.final_layernorm.weight", ("model.norm.weight",), whole(hidden)),
            Rule(f"{ATTENTION}.linear_qkv.weight", tuple(f"{x}.weight" for x in HF_QKV), qkv(of=(hidden,))),
            Rule(f"{ATTENTION}.linear_proj.weight", (f"{HF}.self_attn.o_proj.weight",), columns(hidden, queries)),
            Rule(f"{MLP}.linear_fc1.weight", (f"{HF}.mlp.gate_proj.weight", f"{HF}.mlp.up_proj.weight"), gate_up),
            Rule(f"{MLP}.linear_fc2.weight", (f"{HF}.mlp.down_proj.weight",), columns(hidden, inner)),
            # The two norms stand by themselves in local layers, inside the linear that follows in TransformerEngine's.
            Rule(f"{MEGATRON}.input_layernorm.weight", HF_NORM, whole(hidden), LOCAL),
            Rule(f"{ATTENTION}.linear_qkv.layer_norm_weight", HF_NORM, whole(hidden), TRANSFORMER_ENGINE),
            Rule(f"{MEGATRON}.pre_mlp_layernorm.weight", HF_MLP_NORM, whole(hidden), LOCAL),
            Rule(f"{MLP}.linear_fc1.layer_norm_weight", HF_MLP_NORM, whole(hidden), TRANSFORMER_ENGINE),
        ]
        if not hf.tie_word_embeddings:
            table.append(Rule("output_layer.weight", ("lm_head.weight",), words))
        if hf.qkv_bias:
            table.append(Rule(f"{ATTENTION}.linear_qkv.bias", tuple(f"{x}.bias" for x in HF_QKV), qkv()))
        if hf.qk_norm:
            head = whole(hf.head_dim)
            table.append(Rule(f"{ATTENTION}.q_layernorm.weight", (f"{HF}.self_attn.q_norm.weight",), head))
            table.append(Rule(f"{ATTENTION}.k_layernorm.weight", (f"{HF}.self_attn.k_norm.weight",), head))
        return table

    def transformer_arguments(self, hf: HFConfig) -> dict[str, Any]:
        return {
            "num_layers": hf.num_hidden_layers,
            "hidden_size": hf.hidden_size,
            "ffn_hidden_size": hf.intermediate_size,
            "num_attention_heads": hf.num_attention_heads,
            "num_query_groups": hf.num_key_value_heads,
            "kv_channels": hf.head_dim,
            "layernorm_epsilon": hf.rms_norm_eps,
            "normalization": "RMSNorm",
            "activation_func": "silu",
            "gated_linear_unit": True,
            "add_bias_linear": False,
            "add_qkv_bias": hf.qkv_bias,
            "qk_layernorm": hf.qk_norm,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        }

    def gpt_arguments(self, hf: HFConfig) -> dict[str, Any]:
        return {
            "max_sequence_length": hf.max_position_embeddings,
            "share_embeddings_and_output_weights": hf.tie_word_embeddings,
            "position_embedding_type": "rope",
            "rotary_base": hf.rope_theta,
            "rope_scaling": hf.rope_scaling_factor is not None,
            "rope_scaling_factor": hf.rope_scaling_factor or 1.0,
        }


def _rope_scaling_factor(rope: dict[str, Any], file: Path) -> float | None:
    rope_type = rope.get("rope_type") or rope.get("type", "default")  # "type": the key of older configs
    if rope_type == "default":
        return None
    if rope_type != "llama3":
        raise ModelFolderError(f"{file}: rope type {rope_type!r} is not supported; supported: default, llama3")
    for name, known in LLAMA3_ROPE.items():
        if rope.get(name, known) != known:
            raise ModelFolderError(f"{file}: {name} = {rope[name]} is not supported; Megatron-Core knows {known}")
    return float(rope["factor"])
