"""A model's parameters as a Megatron checkpoint names and shapes them, beside their HF tensors.

An HFConfig comes in, a list of Parameters in the order of an HF model's files goes out. The rules are those of
weights/mapping.py. A checkpoint holds global tensors: what one rank without tensor parallelism has, with the layers
stacked under one key along a first axis of their own. It uses the names of TransformerEngine's layers; Megatron-Core
translates its local layers' to them.
"""

from dataclasses import dataclass
from math import prod

from megatron_nft.families.hf_config import HFConfig
from megatron_nft.weights.mapping import TABLES, VOCAB, WHOLE, Rule, padded_vocab_size

LAYER = "decoder.layers.{layer}."
LOCAL_NAMES = {f"{LAYER}input_layernorm.weight", f"{LAYER}pre_mlp_layernorm.weight"}
"""Rules that are of no use here: checkpoints have these norms under TransformerEngine's names."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of one layer, or of none."""

    key: str
    layer: int | None
    rule: Rule
    hf_shapes: dict[str, tuple[int, ...]]  # HF name -> shape
    shape: tuple[int, ...]  # global, less the axis of the layers; of a vocabulary: with the padding of one rank

    @property
    def is_table(self) -> bool:
        """Whether it has the vocabulary's rows, and maybe padding after them."""
        return self.rule.layout is VOCAB

    @property
    def is_plain(self) -> bool:
        """Whether its rows are the rows of a single HF tensor."""
        return self.is_table or self.rule.layout is WHOLE

    @property
    def numel(self) -> int:
        """Numbers in its HF tensors."""
        return sum(prod(shape) for shape in self.hf_shapes.values())


def parameters(hf: HFConfig) -> list[Parameter]:
    """All of a model: the embedding, layer by layer, the last norm, and the output layer unless it is tied."""
    rules = [rule for name, rule in TABLES[hf.model_type].items() if name not in LOCAL_NAMES]
    outside = {rule.megatron: rule for rule in rules if LAYER not in rule.megatron}
    last = ["decoder.final_layernorm.weight"] + ([] if hf.tie_word_embeddings else ["output_layer.weight"])
    return [
        _parameter(outside["embedding.word_embeddings.weight"], None, hf),
        *(
            _parameter(rule, layer, hf)
            for layer in range(hf.num_hidden_layers)
            for rule in rules
            if LAYER in rule.megatron
        ),
        *(_parameter(outside[name], None, hf) for name in last),
    ]


def _parameter(rule: Rule, layer: int | None, hf: HFConfig) -> Parameter:
    shapes = {name: _hf_shape(name, hf) for name in rule.hf_names("" if layer is None else str(layer))}
    rows = sum(shape[0] for shape in shapes.values())  # in whatever order: a fused parameter has its parts' rows
    if rule.layout is VOCAB:
        rows = padded_vocab_size(rows, 1)
    (rest,) = {shape[1:] for shape in shapes.values()}
    return Parameter(rule.megatron.replace("{layer}.", ""), layer, rule, shapes, (rows, *rest))


def _hf_shape(name: str, hf: HFConfig) -> tuple[int, ...]:
    queries, keys = hf.num_attention_heads * hf.head_dim, hf.num_key_value_heads * hf.head_dim
    hidden, inner = hf.hidden_size, hf.intermediate_size
    shapes = {
        "embed_tokens.weight": (hf.vocab_size, hidden),
        "lm_head.weight": (hf.vocab_size, hidden),
        "q_proj.weight": (queries, hidden),
        "k_proj.weight": (keys, hidden),
        "v_proj.weight": (keys, hidden),
        "q_proj.bias": (queries,),
        "k_proj.bias": (keys,),
        "v_proj.bias": (keys,),
        "o_proj.weight": (hidden, queries),
        "gate_proj.weight": (inner, hidden),
        "up_proj.weight": (inner, hidden),
        "down_proj.weight": (hidden, inner),
        "q_norm.weight": (hf.head_dim,),
        "k_norm.weight": (hf.head_dim,),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "norm.weight": (hidden,),
    }
    return shapes[".".join(name.split(".")[-2:])]
