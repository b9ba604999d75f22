"""Qwen3, dense: each head's queries and keys are normalised, which config.json doesn't mention."""

from megatron_nft.families.llama_like import LlamaLike

FAMILY = LlamaLike(model_type="qwen3", qk_norm=True)
