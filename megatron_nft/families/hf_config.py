"""The architecture of a model, as its HF folder's config.json states it.

A folder comes in, a typed `HFConfig` goes out. config.py checks layouts against it, actor/model.py builds the Megatron
model from it, weights/mapping.py names the weights by it: no dimension is typed a second time anywhere. No heavy
imports.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDE_FILES = "hf"
"""Folder in a Megatron checkpoint, with the config and the tokenizer of its model."""

FAMILIES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
"""model_type -> architecture of the families that weights/mapping.py can name."""

QKV_BIAS = {"qwen2"}
"""Families whose query, key and value projections have a bias. Nothing in config.json says so."""

QK_NORM = {"qwen3"}
"""Families that normalise each head's queries and keys. Nothing in config.json says so."""

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The rope scaling that Megatron-Core knows (RotaryEmbedding._apply_scaling), less its factor."""


class ModelFolderError(ValueError):
    """A model folder is missing, incomplete, or of an architecture that is not supported."""


@dataclass(frozen=True, kw_only=True)
class HFConfig:
    """Dimensions of a decoder-only model, under their HF names."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool = False
    rope_scaling_factor: float | None = None  # of Llama 3.1's rope scaling
    sliding_window: int | None = None  # tokens; config.check_layout allows no longer sequence: the actor has no window

    @property
    def layer_parameters(self) -> int:
        """Of one layer's matrices."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def attention_parity_tokens(self) -> float:
        """Length of a sequence at which its causal attention costs as much as a layer's matrices, in tokens.

        Forward FLOPs of a layer over T tokens: 2 P T of its P parameters, 2 T^2 heads head_dim of attention.
        """
        return self.layer_parameters / (self.num_attention_heads * self.head_dim)


def is_megatron_folder(folder: str | Path) -> bool:
    """Whether a folder is a checkpoint in Megatron's torch_dist format."""
    return (Path(folder) / "metadata.json").is_file()


def hf_side(folder: str | Path) -> Path:
    """Where a model folder has config.json and tokenizer: HF's in itself, a Megatron checkpoint's in hf/."""
    return Path(folder) / SIDE_FILES if is_megatron_folder(folder) else Path(folder)


def read_hf_config(folder: str | Path) -> HFConfig:
    """Reads the config.json of an HF folder or of a Megatron checkpoint.

    Raises:
        ModelFolderError: no such folder, no config.json, or a family that is not supported.
    """
    if not Path(folder).is_dir():
        raise ModelFolderError(f"model.path = {str(folder)!r}: no such folder; give a local HF model folder")
    folder = hf_side(folder)
    try:
        raw = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        if folder.name == SIDE_FILES and is_megatron_folder(folder.parent):
            raise ModelFolderError(
                f"{folder.parent}: a Megatron checkpoint without {SIDE_FILES}/config.json; put the config and "
                f"tokenizer of its model into {folder}"
            ) from None
        raise ModelFolderError(f"model.path = {str(folder)!r}: has no config.json, so it is not an HF model") from None
    except json.JSONDecodeError as error:
        raise ModelFolderError(f"{folder / 'config.json'} is not valid JSON: {error}") from None
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise ModelFolderError(
            f"{folder / 'config.json'}: model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    has_window = raw.get("use_sliding_window", model_type == "mistral")
    for bias in ("attention_bias", "mlp_bias"):
        if raw.get(bias):
            raise ModelFolderError(f"{folder / 'config.json'}: {bias} = true is not supported")
    heads = raw["num_attention_heads"]
    return HFConfig(
        model_type=model_type,
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
        qkv_bias=model_type in QKV_BIAS,
        qk_norm=model_type in QK_NORM,
        rope_scaling_factor=_rope_scaling_factor(rope, folder / "config.json"),
        sliding_window=raw.get("sliding_window") if has_window else None,
    )


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
