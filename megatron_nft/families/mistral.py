"""Mistral: a Llama whose sliding window is in force unless it is null, and which has 8 key heads unless it says so."""

from megatron_nft.families.llama_like import LlamaLike

FAMILY = LlamaLike(
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    nullable={"head_dim"},
)
