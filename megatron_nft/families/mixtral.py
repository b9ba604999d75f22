"""Mixtral: Mistral with experts in every layer, whose window is null unless it is said."""

from pathlib import Path
from typing import Any

from megatron_nft.families.family import HFConfig
from megatron_nft.families.llama_like import HF
from megatron_nft.families.mixture import MixtureLike

THETA = 1e6
"""Where config.json says none."""
BLOCK = f"{HF}.block_sparse_moe"


class Mixtral(MixtureLike):
    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        return super().read({"rope_theta": THETA} | raw, file)


FAMILY = Mixtral(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    defaults={
        "max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "num_experts_per_tok": 2,
    },
    nullable={"num_key_value_heads", "head_dim"},
    router=f"{BLOCK}.gate.weight",
    expert=f"{BLOCK}.experts.{{expert}}",
    matrices=("w1", "w3", "w2"),
    inner="intermediate_size",
    counts=("num_local_experts", "num_experts"),
    normalizes=True,
    layer_keys=frozenset(),
)  # fmt: skip
