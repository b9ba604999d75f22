"""What Llama and the families that follow it share: a decoder of RMS norms, grouped-query attention, rope and SwiGLU.

A family's file says what differs: facts that config.json leaves out, keys that it must not have, and, where need be,
methods of its own. The keys are those of transformers' configuration classes.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path
from typing import Any

from megatron_nft.families.config_json import Keys
from megatron_nft.families.family import HFConfig, ModelFolderError
from megatron_nft.families.foreign_keys import check_foreign_keys
from megatron_nft.families.rope import read_rope
from megatron_nft.families.rules import LOCAL, TRANSFORMER_ENGINE, Rule, columns, rows, vocabulary, whole

MEGATRON, HF = "decoder.layers.{layer}", "model.layers.{layer}"
ATTENTION, MLP = f"{MEGATRON}.self_attention", f"{MEGATRON}.mlp"
HF_QKV = tuple(f"{HF}.self_attn.{x}_proj" for x in "qkv")
HF_NORM, HF_MLP_NORM = (f"{HF}.input_layernorm.weight",), (f"{HF}.post_attention_layernorm.weight",)

DEFAULTS = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "num_key_value_heads": None,
    "head_dim": None, "sliding_window": None,
}  # fmt: skip
"""Of transformers 5.19's configuration classes. The sizes of matrices have none here: a config.json without them is not
of any weights."""
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class LlamaLike:
    """See families/family.py, `Family`."""

    model_type: str
    architecture: str | None = None
    """Its class in transformers and vLLM, by which vLLM chooses; None: config.json says."""
    defaults: Mapping[str, Any]
    """What its configuration class in transformers puts for keys that config.json leaves out, beyond `DEFAULTS`."""
    nullable: Set[str] = frozenset({"num_key_value_heads"})
    """Of those keys that are null where they follow from others."""
    qkv_bias: bool = False
    """Queries, keys and values have a bias."""
    qk_norm: bool = False
    """Each head's queries and keys are normalised."""
    own_keys: Set[str] = frozenset()
    """Keys of foreign_keys.OFF that the family reads itself."""

    @property
    def keys_read(self) -> Set[str]:
        """Keys that `check_foreign_keys` leaves to the family."""
        return self.own_keys

    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        keys = Keys(raw, file, DEFAULTS | dict(self.defaults))
        _check_kind(keys, self.architecture)
        check_foreign_keys(keys, self.keys_read)
        hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
        key_heads, head_dim = (self._count(keys, name) for name in ("num_key_value_heads", "head_dim"))
        key_heads, head_dim = key_heads or heads, head_dim or hidden // heads
        if heads % key_heads:
            keys.refuse("num_key_value_heads", key_heads, f"does not divide num_attention_heads {heads}")
        if head_dim % 2 or not head_dim:
            keys.refuse("head_dim", head_dim, "is not even, and rope turns pairs")
        length = keys.count("max_position_embeddings")
        rope = read_rope(raw, file, length)
        return HFConfig(
            model_type=self.model_type,
            hidden_size=hidden,
            intermediate_size=keys.count("intermediate_size"),
            num_hidden_layers=keys.count("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            head_dim=head_dim,
            vocab_size=keys.count("vocab_size"),
            max_position_embeddings=length,
            rms_norm_eps=keys.real("rms_norm_eps"),
            rope_theta=rope.theta,
            tie_word_embeddings=keys.flag("tie_word_embeddings"),
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            rope_scaling_factor=rope.llama3_factor,
            rope_linear_factor=rope.linear_factor,
            yarn=rope.yarn,
            sliding_window=_sliding_window(keys),
        )

    def _count(self, keys: Keys, key: str) -> int | None:
        """One that may be absent, and null if transformers takes null."""
        return keys.optional_count(key) if key in self.nullable or key not in keys.raw else keys.count(key)

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

    def config_attributes(self, hf: HFConfig) -> dict[str, Any]:
        if (yarn := hf.yarn) is None:
            return {}
        # Megatron's factor of cosines and sines is (1 + 0.1 mscale ln factor) / (1 + 0.1 mscale_all_dim ln factor).
        mscale = 0.0 if yarn.factor == 1 else (yarn.attention_factor - 1) / (0.1 * log(yarn.factor))
        return {
            "yarn_rotary_scaling_factor": yarn.factor,
            "yarn_original_max_position_embeddings": yarn.original_max_position_embeddings,
            "yarn_beta_fast": yarn.beta_fast,
            "yarn_beta_slow": yarn.beta_slow,
            "yarn_mscale": mscale,
            "yarn_mscale_all_dim": 0.0,
            "yarn_correction_range_round_to_int": yarn.truncate,
        }

    def gpt_arguments(self, hf: HFConfig) -> dict[str, Any]:
        return {
            "max_sequence_length": hf.max_position_embeddings,
            "share_embeddings_and_output_weights": hf.tie_word_embeddings,
            "position_embedding_type": "rope" if hf.yarn is None else "yarn",
            "seq_len_interpolation_factor": hf.rope_linear_factor,
            "rotary_base": hf.rope_theta,
            "rope_scaling": hf.rope_scaling_factor is not None,
            "rope_scaling_factor": hf.rope_scaling_factor or 1.0,
        }


def _check_kind(keys: Keys, architecture: str | None) -> None:
    """Whether it is a language model of plain numbers, and of the class that its family has."""
    for key in ("quantization_config", "compression_config"):
        if value := keys.raw.get(key):
            method = value.get("quant_method", "unnamed") if isinstance(value, dict) else value
            raise ModelFolderError(
                f"{keys.file}: {key} (method {method}): quantized weights are not trained; give the model's folder of "
                "bfloat16 or float32 weights, or dequantize it"
            )
    names = keys.raw.get("architectures")
    if names is not None and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
        keys.refuse("architectures", names, "is not a list of names")
    wanted = (architecture or "ForCausalLM").lower()  # the first Llamas were LLaMAForCausalLM
    fits = str.__eq__ if architecture else str.endswith
    if names and not any(fits(name.lower(), wanted) for name in names):
        why = f"is not {architecture}" if architecture else "is not a language model"
        keys.refuse("architectures", names, f"{why}, which model_type {keys.raw.get('model_type')!r} means")
    if keys.raw.get("is_causal") is False:
        keys.refuse("is_causal", False, "is not supported: tokens would see those after them", "take a language model")
    if keys.get("hidden_act") != "silu":
        keys.refuse("hidden_act", keys.get("hidden_act"), "is not supported", 'the actor and vLLM know "silu" only')


def _sliding_window(keys: Keys) -> int | None:
    """The window of any layer: vLLM puts one on all of them, whatever max_window_layers and layer_types say."""
    window = keys.optional_count("sliding_window")
    # Where the family has no such flag, transformers doesn't look at it.
    is_used = keys.flag("use_sliding_window") if "use_sliding_window" in keys.defaults else True
    window = window if is_used else None
    layers, kinds = keys.count("num_hidden_layers"), keys.raw.get("layer_types")
    if "max_window_layers" in keys.defaults:
        number = keys.get("max_window_layers")
        if type(number) is not int or number < 0:
            keys.refuse("max_window_layers", number, "is not a whole number from 0 on")
    if kinds is None:
        return window
    if not isinstance(kinds, list) or not all(kind in LAYER_TYPES for kind in kinds):
        keys.refuse("layer_types", kinds, "is not supported", f"known are {', '.join(LAYER_TYPES)}")
    if len(kinds) != layers:
        keys.refuse("layer_types", kinds, f"are {len(kinds)}, num_hidden_layers is {layers}")
    if "sliding_attention" in kinds and window is None:
        keys.refuse("layer_types", kinds, "name sliding layers, but there is no sliding_window")
    return window
