"""Llama 2 and 3, with the rope scaling of 3.1."""

from megatron_nft.families.llama_like import LlamaLike

FAMILY = LlamaLike(
    model_type="llama",
    architecture="LlamaForCausalLM",
    defaults={"max_position_embeddings": 2048},
    nullable={"num_key_value_heads", "head_dim"},
)
