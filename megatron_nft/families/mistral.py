"""Mistral: a Llama whose sliding window is in force unless it is null, and which has 8 key heads unless it says so."""

from pathlib import Path
from typing import Any

from megatron_nft.families.config_json import Keys
from megatron_nft.families.family import HFConfig
from megatron_nft.families.llama_like import LlamaLike


class Mistral(LlamaLike):
    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        if "layer_types" in raw:
            why = "is not known to transformers for this family: it builds no model"
            Keys(raw, file, {}).refuse(
                "layer_types", raw["layer_types"], why, "take the key out if all layers are alike"
            )
        return super().read(raw, file)


FAMILY = Mistral(
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    nullable={"head_dim"},
)
