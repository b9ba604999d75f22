"""Qwen2 and Qwen2.5: queries, keys and values have a bias, which config.json doesn't mention."""

from megatron_nft.families.llama_like import LlamaLike

SIZES = {"max_position_embeddings": 32768, "num_key_value_heads": 32}
WINDOW = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
"""In force only if use_sliding_window says so."""

FAMILY = LlamaLike(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    defaults=SIZES | WINDOW,
    qkv_bias=True,
)
