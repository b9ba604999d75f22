"""Qwen3, dense: each head's queries and keys are normalised, which config.json doesn't mention."""

from megatron_nft.families.llama_like import LlamaLike
from megatron_nft.families.qwen2 import SIZES, WINDOW

FAMILY = LlamaLike(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults=SIZES | WINDOW | {"head_dim": 128},
    qk_norm=True,
)
