"""Seed-OSS (ByteDance): a Llama with a bias on queries, keys and values, which config.json can switch off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_nft.families.config_json import Keys
from megatron_nft.families.family import HFConfig
from megatron_nft.families.llama_like import LlamaLike


class SeedOss(LlamaLike):
    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        has_bias = Keys(raw, file, {"attention_bias": True}).flag("attention_bias")
        return replace(super().read(raw, file), qkv_bias=has_bias)


FAMILY = SeedOss(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    defaults={"max_position_embeddings": 524288, "num_key_value_heads": 8, "head_dim": 128},
    own_keys={"attention_bias"},
)
