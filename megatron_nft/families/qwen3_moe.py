"""Qwen3's mixtures (30B-A3B, 235B-A22B, Coder): Qwen3 with experts. Its configuration class knows no window a layer."""

from megatron_nft.families.mixture import MixtureLike

FAMILY = MixtureLike(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    defaults={
        "max_position_embeddings": 32768, "num_key_value_heads": 4, "sliding_window": 4096, "use_sliding_window": False,
        "num_experts_per_tok": 8, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": None,
    },
    nullable=frozenset(),
    qk_norm=True,
)  # fmt: skip
