"""What a model family is: who reads its config.json, names and shapes its tensors, and tells Megatron what to build.

Each family is a file beside this one (README.md), with an instance of its class as FAMILY; families/registry.py finds
it by model_type. An HFConfig is one model's architecture in numbers: config checks layouts against it, the planner
counts by it, and the family derives all else from it, so that no dimension is typed a second time. No heavy imports.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_nft.families.rules import Rule


class ModelFolderError(ValueError):
    """A model folder is missing, incomplete, or of an architecture that is not supported."""


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN's stretching of rotary positions, under transformers' names."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float  # of cosines and sines
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # bounds of the ramp are rounded to whole dimensions


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The experts of a mixture, in the layers that have them."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int  # of one expert
    normalizes_weights: bool  # those of a token's experts add up to 1
    shared_intermediate_size: int | None = None  # of the expert that every token has, behind a gate of its own
    dense_layers: tuple[int, ...] = ()  # those with one MLP in place of experts


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
    rope_linear_factor: float | None = None  # positions are divided by it
    yarn: Yarn | None = None
    sliding_window: int | None = None  # tokens; config.check_layout allows no longer sequence: the actor has no window
    mixture: Mixture | None = None

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Those that have experts."""
        if self.mixture is None:
            return ()
        return tuple(layer for layer in range(self.num_hidden_layers) if layer not in self.mixture.dense_layers)

    @property
    def active_intermediate_size(self) -> int:
        """Of the MLPs of one layer that a token goes through; of a mixture the mean of its layers."""
        if (mixture := self.mixture) is None:
            return self.intermediate_size
        sparse = mixture.experts_per_token * mixture.intermediate_size + (mixture.shared_intermediate_size or 0)
        num_sparse = len(self.sparse_layers)
        total = num_sparse * sparse + (self.num_hidden_layers - num_sparse) * self.intermediate_size
        return total // self.num_hidden_layers

    @property
    def layer_parameters(self) -> int:
        """Of the matrices of one layer that a token goes through; of a mixture the mean of its layers."""
        return self._layer_parameters(every_expert=False)

    @property
    def stored_layer_parameters(self) -> int:
        """Of all matrices of one layer, whichever experts a token goes through."""
        return self._layer_parameters(every_expert=True)

    def _layer_parameters(self, *, every_expert: bool) -> int:
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        dense = 3 * self.hidden_size * self.intermediate_size
        if (mixture := self.mixture) is None:
            return attention + dense
        count = mixture.num_experts if every_expert else mixture.experts_per_token
        inner = count * mixture.intermediate_size + (mixture.shared_intermediate_size or 0)
        shared_gate = self.hidden_size if mixture.shared_intermediate_size else 0
        sparse = 3 * self.hidden_size * inner + self.hidden_size * mixture.num_experts + shared_gate
        num_sparse = len(self.sparse_layers)
        mlps = num_sparse * sparse + (self.num_hidden_layers - num_sparse) * dense
        return attention + mlps // self.num_hidden_layers

    @property
    def attention_parity_tokens(self) -> float:
        """Length of a sequence at which its causal attention costs as much as a layer's matrices, in tokens.

        Forward FLOPs of a layer over T tokens: 2 P T of its P parameters, 2 T^2 heads head_dim of attention.
        """
        return self.layer_parameters / (self.num_attention_heads * self.head_dim)


class Family(Protocol):
    """All that the program knows of a family."""

    model_type: str
    """Of its config.json."""
    architecture: str | None
    """Its class in transformers and vLLM, by which vLLM chooses; None: config.json says."""

    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        """What a config.json says.

        Args:
            raw: its keys.
            file: where it lies, for messages.

        Raises:
            ModelFolderError: it asks for something that the actor can't do.
        """

    def rules(self, hf: HFConfig) -> Sequence[Rule]:
        """The table of a model: its Megatron parameters, the HF tensors that make each, their shapes and layout."""

    def transformer_arguments(self, hf: HFConfig) -> dict[str, Any]:
        """Of Megatron's TransformerConfig: all that follows from the architecture. An activation by its name."""

    def config_attributes(self, hf: HFConfig) -> dict[str, Any]:
        """What Megatron's GPTModel looks for on the TransformerConfig although it is no field of it."""

    def gpt_arguments(self, hf: HFConfig) -> dict[str, Any]:
        """Of Megatron's GPTModel, likewise."""
