"""Mistral: a Llama whose sliding window is in force unless it is null."""

from megatron_nft.families.llama_like import LlamaLike

FAMILY = LlamaLike(model_type="mistral", defaults={"use_sliding_window": True})
