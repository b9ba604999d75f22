"""Qwen2's mixtures (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): Qwen2 with experts, and one that every token has."""

from pathlib import Path
from typing import Any

from megatron_nft.families.config_json import Keys
from megatron_nft.families.family import HFConfig
from megatron_nft.families.mixture import MixtureLike
from megatron_nft.families.qwen2 import WINDOW


class Qwen2Moe(MixtureLike):
    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        if not Keys(raw, file, {"qkv_bias": True}).flag("qkv_bias"):
            Keys(raw, file, {}).refuse("qkv_bias", False, "is not supported", "vLLM has a bias in every qwen2_moe")
        if raw.get("sliding_window") == 0 and raw.get("use_sliding_window") is not True:
            raw = raw | {"sliding_window": None}  # as transformers 5 writes it
        return super().read(raw, file)


FAMILY = Qwen2Moe(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    defaults=WINDOW | {
        "max_position_embeddings": 32768, "num_key_value_heads": 16,
        "num_experts_per_tok": 4, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": None,
    },
    nullable=frozenset(),
    own_keys={"qkv_bias"},
    counts=("num_experts",),
    qkv_bias=True,
    has_shared_expert=True,
)  # fmt: skip
