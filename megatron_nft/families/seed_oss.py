"""Seed-OSS (ByteDance): a Llama with a bias on queries, keys and values, which config.json can switch off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_nft.families.family import HFConfig
from megatron_nft.families.llama_like import LlamaLike


class SeedOss(LlamaLike):
    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        return replace(super().read(raw, file), qkv_bias=raw.get("attention_bias", True))


FAMILY = SeedOss(
    model_type="seed_oss",
    refused=("attention_out_bias", "mlp_bias"),
    defaults={"head_dim": 128},
)
