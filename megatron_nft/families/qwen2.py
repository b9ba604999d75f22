"""Qwen2 and Qwen2.5: queries, keys and values have a bias, which config.json doesn't mention."""

from megatron_nft.families.llama_like import LlamaLike

FAMILY = LlamaLike(model_type="qwen2", qkv_bias=True)
