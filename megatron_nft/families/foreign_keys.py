"""Keys of config.json beyond a family's own: those that change what a model computes, and those that don't.

A family passes its config.json's keys to `check_foreign_keys`. A key of the first kind is refused unless its value
switches it off; of a key of neither kind, a warning says that it is ignored. Data, and the one function that reads it.
"""

import warnings
from collections.abc import Set
from typing import Any

from megatron_nft.families.config_json import Keys

OFF: dict[str, tuple[Any, ...]] = {
    # scales of the stream and of logits (Granite, Cohere, MiniCPM, Gemma)
    "logits_scaling": (1,), "logit_scale": (1,), "embedding_multiplier": (1,), "residual_multiplier": (1,),
    "attention_multiplier": (), "scale_emb": (1,), "scale_depth": (), "dim_model_base": (), "scale_embedding": (),
    "normalize_embedding": (), "lm_head_multiplier": (1,), "key_multiplier": (1,), "query_pre_attn_scalar": (),
    "attention_scale": (), "mlp_multipliers": (), "ssm_multipliers": (),
    # soft caps
    "final_logit_softcapping": (0,), "attn_logit_softcapping": (0,), "logits_soft_cap": (0,), "clip_qkv": (),
    # biases and norms
    "attention_bias": (), "mlp_bias": (), "qkv_bias": (), "bias": (), "use_bias": (), "use_qkv_bias": (),
    "attention_out_bias": (), "attn_bias": (), "add_bias_linear": (), "lm_head_bias": (), "o_proj_bias": (),
    "use_qk_norm": (), "qk_norm": (), "qk_layernorm": (), "use_post_norm": (), "post_norm": (),
    "apply_residual_connection_post_layernorm": (), "add_unit_offset": (), "norm_type": ("rms_norm",),
    "use_parallel_residual": (), "parallel_attn": (), "hidden_activation": ("silu",), "activation_function": ("silu",),
    # positions and windows
    "partial_rotary_factor": (1,), "rotary_pct": (1,), "rotary_percent": (1,), "rotary_dim": (), "rope_ratio": (1,),
    "rotary_emb_fraction": (1,), "rotary_emb_base": (), "rotary_base": (), "rope_local_base_freq": (),
    "rope_interleave": (), "rope_interleaved": (), "rotary_interleaved": (), "no_rope_layers": (),
    "no_rope_layer_interval": (), "nope_layer_interval": (), "alibi": (), "use_alibi": (), "position_embedding_type":
    ("rope", "absolute"), "attention_chunk_size": (), "sliding_window_pattern": (), "sliding_windows": (),
    "attn_temperature_tuning": (), "llama_4_scaling": (), "dual_chunk_attention_config": (), "use_sinks": (),
    "attention_sink": (), "use_dynamic_ntk": (), "mrope_section": (),
    # another kind of model
    "num_experts": (0,), "num_local_experts": (0,), "n_routed_experts": (0,), "moe_num_experts": (0,),
    "num_experts_per_tok": (0,), "n_shared_experts": (0,), "num_shared_experts": (0,),
    "shared_expert_intermediate_size": (0,), "router_jitter_noise": (0,), "n_group": (0, 1), "topk_group": (0, 1),
    "routed_scaling_factor": (1,), "scoring_func": ("softmax",), "topk_method": ("greedy",),
    "first_k_dense_replace": (0,), "moe_layer_freq": (1,), "use_expert_bias": (), "moe_router_enable_expert_bias": (),
    "swiglu_limit": (), "kv_lora_rank": (), "q_lora_rank": (), "qk_rope_head_dim": (),
    "num_nextn_predict_layers": (0,), "num_mtp_layers": (0,), "mtp_num_hidden_layers": (0,), "per_layer_config": (),
    "block_configs": (), "text_config": (), "vision_config": (), "is_encoder_decoder": (), "add_cross_attention": (),
    "use_bidirectional_attention": (), "num_kv_shared_layers": (0,), "hidden_size_per_layer_input": (0,),
    "peft_config": (), "embedding_dim": (), "word_embed_proj_dim": (),
}  # fmt: skip
"""Key -> values beside null, false and an empty list or object at which it does nothing."""

HARMLESS = frozenset({
    "is_causal", "is_decoder", "is_llama_config",
    "_name_or_path", "_commit_hash", "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled",
    "architectures", "attn_implementation", "attention_dropout", "auto_map", "base_model_name_or_path",
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "embd_pdrop", "attn_pdrop", "resid_pdrop", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "hidden_dropout", "id2label", "initializer_range", "initializer_factor", "keys_to_ignore", "label2id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "model_name", "model_type", "name_or_path",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type",
    "pruned_heads", "remove_invalid_values", "repetition_penalty", "residual_dropout", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "transformers.js_config", "typical_p", "unsloth_fixed", "unsloth_version",
    "unsloth_tied_weights", "use_bfloat16", "use_cache", "use_flash_attn", "use_mrope", "gradient_checkpointing",
    "rope_scaling", "rope_parameters", "rope_theta", "original_max_position_embeddings", "hidden_act", "hidden_size",
    "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "seq_length", "model_max_length", "max_sequence_length",
    "quantization_config", "compression_config", "output_router_logits", "router_aux_loss_coef",
})  # fmt: skip
"""Those that a family reads itself, and those that change nothing that is trained."""


def check_foreign_keys(keys: Keys, own: Set[str]) -> None:
    """
    Args:
        own: keys of OFF that the family reads itself.

    Raises:
        ModelFolderError: one is switched on.
    """
    for key, value in keys.raw.items():
        if key in OFF and key not in own and not _is_off(value, OFF[key]):
            if value is True:
                keys.refuse(key, value, "is not supported", "the actor would compute another model than this one")
            keys.refuse(key, value, "changes what the model computes and is not supported", "take another model")
    unknown = sorted(key for key in keys.raw if key not in OFF and key not in HARMLESS and key not in own)
    if unknown:
        warnings.warn(
            f"{keys.file}: {', '.join(unknown)}: not known here, and ignored; if the model's own code reads them, what "
            "is trained is not this model",
            stacklevel=2,
        )


def _is_off(value: Any, neutral: tuple[Any, ...]) -> bool:
    if value is None or value is False or value == [] or value == {}:
        return True
    return type(value) is not bool and value in neutral
