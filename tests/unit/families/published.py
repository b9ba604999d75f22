"""config.json files of published models, as remembered: the keys that say what is computed, without those that don't.

Name -> (keys, what becomes of it: "" where it is read, else words of the refusal). Used by test_published.py.
"""

SWIGLU = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}


def model(kind, hidden, inner, layers, heads, kv, vocab, length, **more):
    """Names of sizes are long."""
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocab}
    heads = {"num_attention_heads": heads, "num_key_value_heads": kv, "max_position_embeddings": length}
    return {"model_type": kind, **SWIGLU, **sizes, **heads, **more}


QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "rope_theta": 1000000.0}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128, "rope_scaling": None,
         "sliding_window": None, "use_sliding_window": False, "rope_theta": 1000000}  # fmt: skip
LLAMA = {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-5}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
          "rope_type": "llama3"}  # fmt: skip
LLAMA32 = LLAMA | {"rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"factor": 32.0}, "tie_word_embeddings": True}
MISTRAL = {"architectures": ["MistralForCausalLM"], "rms_norm_eps": 1e-5}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
DUAL = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
SUPPORTED = "supported: llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe, seed_oss"
NOT_KNOWN = f"is not supported; {SUPPORTED}"
MOE = {"decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": False, "router_aux_loss_coef": 0.001,
       "norm_topk_prob": True, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}  # fmt: skip
QWEN3_MOE = QWEN3 | MOE | {"architectures": ["Qwen3MoeForCausalLM"]}
QWEN2_MOE = QWEN2 | MOE | {"architectures": ["Qwen2MoeForCausalLM"], "norm_topk_prob": False}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 2,
           "num_local_experts": 8, "output_router_logits": False, "router_aux_loss_coef": 0.02}  # fmt: skip

PUBLISHED = {
    "Qwen2.5-0.5B-Instruct": (
        model("qwen2", 896, 4864, 24, 14, 2, 151936, 32768, **QWEN2, sliding_window=32768, max_window_layers=21)
        | {"tie_word_embeddings": True},
        "",
    ),
    "Qwen2.5-7B": (
        model("qwen2", 3584, 18944, 28, 28, 4, 152064, 131072, **QWEN2, sliding_window=131072, max_window_layers=28,
              use_mrope=False),
        "",
    ),
    "Qwen2.5-7B-Instruct with yarn": (
        model("qwen2", 3584, 18944, 28, 28, 4, 152064, 131072, **QWEN2, sliding_window=None, rope_scaling=YARN), ""
    ),
    "Qwen2.5-Math-7B": (
        model("qwen2", 3584, 18944, 28, 28, 4, 152064, 4096, **QWEN2 | {"rope_theta": 10000}, sliding_window=4096), ""
    ),
    "Qwen2.5-32B": (
        model("qwen2", 5120, 27648, 64, 40, 8, 152064, 131072, **QWEN2, sliding_window=131072, max_window_layers=64), ""
    ),
    "Qwen2.5-7B-Instruct-1M": (
        model("qwen2", 3584, 18944, 28, 28, 4, 152064, 1010000, **QWEN2 | {"rope_theta": 1e7},
              dual_chunk_attention_config=DUAL),
        "dual_chunk_attention_config = ",
    ),
    "Qwen2.5-VL-7B": (model("qwen2_5_vl", 3584, 18944, 28, 28, 4, 152064, 128000), NOT_KNOWN),
    "Qwen2.5-7B-Instruct-AWQ": (
        model("qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, **QWEN2,
              quantization_config={"quant_method": "awq", "bits": 4}),
        "quantization_config (method awq): quantized weights are not trained",
    ),
    "Qwen2.5-Math-RM": (
        model("qwen2", 3584, 18944, 28, 28, 4, 152064, 4096, **QWEN2 | {"architectures": ["Qwen2ForRewardModel"]}),
        "is not Qwen2ForCausalLM",
    ),
    "QwQ-32B": (
        model("qwen2", 5120, 27648, 64, 40, 8, 152064, 40960, **QWEN2 | {"rms_norm_eps": 1e-5}, sliding_window=32768,
              max_window_layers=64),
        "",
    ),
    "DeepSeek-R1-Distill-Qwen-7B": (
        model("qwen2", 3584, 18944, 28, 28, 4, 152064, 131072, **QWEN2 | {"rope_theta": 10000}, sliding_window=4096), ""
    ),
    "DeepSeek-R1-Distill-Llama-8B": (
        model("llama", 4096, 14336, 32, 32, 8, 128256, 131072, **LLAMA, rope_theta=500000.0, rope_scaling=LLAMA3,
              pretraining_tp=1),
        "",
    ),
    "Qwen3-0.6B": (
        model("qwen3", 1024, 3072, 28, 16, 8, 151936, 40960, **QWEN3, max_window_layers=28)
        | {"tie_word_embeddings": True},
        "",
    ),
    "Qwen3-8B": (model("qwen3", 4096, 12288, 36, 32, 8, 151936, 40960, **QWEN3, max_window_layers=36), ""),
    "Qwen3-32B with yarn": (
        model("qwen3", 5120, 25600, 64, 64, 8, 151936, 131072,
              **QWEN3 | {"rope_scaling": YARN | {"rope_type": "yarn"}}),
        "",
    ),
    "Qwen3-4B-Instruct-2507": (
        model("qwen3", 2560, 9728, 36, 32, 8, 151936, 262144, **QWEN3 | {"rope_theta": 5000000}) | {
            "tie_word_embeddings": True
        },
        "",
    ),
    "Qwen3-30B-A3B": (
        model("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, 40960, **QWEN3_MOE, max_window_layers=48), ""
    ),
    "Qwen3-235B-A22B": (
        model("qwen3_moe", 4096, 12288, 94, 64, 4, 151936, 40960, **QWEN3_MOE | {"moe_intermediate_size": 1536},
              max_window_layers=94),
        "",
    ),
    "Qwen3-Coder-30B-A3B-Instruct": (
        model("qwen3_moe", 2048, 5472, 48, 32, 4, 151936, 262144, **QWEN3_MOE | {"rope_theta": 1e7}, use_qk_norm=None,
              max_window_layers=28, shared_expert_intermediate_size=0),
        "",
    ),
    "Qwen1.5-MoE-A2.7B": (
        model("qwen2_moe", 2048, 5632, 24, 16, 16, 151936, 8192, **QWEN2_MOE | {
            "moe_intermediate_size": 1408, "num_experts": 60, "num_experts_per_tok": 4}, max_window_layers=21,
            sliding_window=32768, shared_expert_intermediate_size=5632),
        "",
    ),
    "Qwen2-57B-A14B": (
        model("qwen2_moe", 3584, 18944, 28, 28, 4, 151936, 131072, **QWEN2_MOE | {
            "moe_intermediate_size": 2560, "num_experts": 64}, max_window_layers=28, sliding_window=65536,
            shared_expert_intermediate_size=20480),
        "",
    ),
    "Qwen3-30B-A3B with a shared expert": (
        model("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, 40960, **QWEN3_MOE, shared_expert_intermediate_size=768),
        "shared_expert_intermediate_size = 768 changes what the model computes",
    ),
    "DeepSeek-V3": (
        model("deepseek_v3", 7168, 18432, 61, 128, 128, 129280, 163840, n_routed_experts=256, kv_lora_rank=512),
        f"is not supported (latent attention, a router with sigmoids, a bias and groups); {SUPPORTED}",
    ),
    "Qwen3-8B-FP8": (
        model("qwen3", 4096, 12288, 36, 32, 8, 151936, 40960, **QWEN3, quantization_config={"quant_method": "fp8"}),
        "quantization_config (method fp8)",
    ),
    "Qwen3-Embedding": (
        model("qwen3", 1024, 3072, 28, 16, 8, 151669, 32768, **QWEN3 | {"architectures": ["Qwen3Model"]}),
        "is not Qwen3ForCausalLM",
    ),
    "Llama-2-7b-chat": (model("llama", 4096, 11008, 32, 32, 32, 32000, 4096, **LLAMA, rope_scaling=None), ""),
    "the first LLaMA": (
        model("llama", 4096, 11008, 32, 32, None, 32000, 2048, **LLAMA | {"architectures": ["LLaMAForCausalLM"]},
              max_sequence_length=2048),
        "",
    ),
    "Meta-Llama-3-8B": (model("llama", 4096, 14336, 32, 32, 8, 128256, 8192, **LLAMA, rope_theta=500000.0), ""),
    "Llama-3.1-8B-Instruct": (
        model("llama", 4096, 14336, 32, 32, 8, 128256, 131072, **LLAMA, rope_theta=500000.0, rope_scaling=LLAMA3), ""
    ),
    "Llama-3.2-1B": (model("llama", 2048, 8192, 16, 32, 8, 128256, 131072, **LLAMA32, head_dim=64), ""),
    "Llama-4-Scout": (model("llama4", 5120, 8192, 48, 40, 8, 202048, 262144, vision_config={}), SUPPORTED),
    "CodeLlama-7b": (model("llama", 4096, 11008, 32, 32, 32, 32016, 16384, **LLAMA, rope_theta=1000000), ""),
    "vicuna-7b-16k, linear": (
        model("llama", 4096, 11008, 32, 32, 32, 32000, 4096, **LLAMA, rope_scaling={"factor": 4.0, "type": "linear"}),
        "",
    ),
    "Yi-34B": (model("llama", 7168, 20480, 60, 56, 8, 64000, 4096, **LLAMA, rope_theta=5000000.0), ""),
    "deepseek-llm-7b": (model("llama", 4096, 11008, 30, 32, 32, 102400, 4096, **LLAMA), ""),
    "deepseek-coder-6.7b": (
        model("llama", 4096, 11008, 32, 32, 32, 32256, 16384, **LLAMA, rope_theta=100000,
              rope_scaling={"factor": 4.0, "type": "linear"}),
        "",
    ),
    "SmolLM2-135M": (
        model("llama", 576, 1536, 30, 9, 3, 49152, 8192, **LLAMA, rope_theta=100000, rope_interleaved=False,
              is_llama_config=True, rope_scaling=None) | {"tie_word_embeddings": True},
        "",
    ),
    "SmolLM3-3B": (
        model("smollm3", 2048, 11008, 36, 16, 4, 128256, 65536, no_rope_layers=[1, 1, 1, 0] * 9), NOT_KNOWN
    ),
    "TinyLlama-1.1B": (model("llama", 2048, 5632, 22, 32, 4, 32000, 2048, **LLAMA), ""),
    "Hermes, dynamic": (
        model("llama", 4096, 11008, 32, 32, 32, 32000, 4096, **LLAMA, rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rope type 'dynamic' is not supported; vLLM stretches it from the first token on",
    ),
    "Llama with biases": (
        model("llama", 4096, 11008, 32, 32, 32, 32000, 4096, **LLAMA | {"attention_bias": True}),
        "attention_bias = true is not supported",
    ),
    "Mistral-7B-v0.1": (
        model("mistral", 4096, 14336, 32, 32, 8, 32000, 32768, **MISTRAL, sliding_window=4096, rope_theta=10000.0), ""
    ),
    "Mistral-7B-Instruct-v0.3": (
        model("mistral", 4096, 14336, 32, 32, 8, 32768, 32768, **MISTRAL, sliding_window=None, rope_theta=1e6), ""
    ),
    "Mistral-Nemo": (
        model("mistral", 5120, 14336, 40, 32, 8, 131072, 1024000, **MISTRAL, head_dim=128, sliding_window=None,
              rope_theta=1e6),
        "",
    ),
    "Mistral-Small-24B": (
        model("mistral", 5120, 32768, 40, 32, 8, 131072, 32768, **MISTRAL, head_dim=128, sliding_window=None,
              rope_theta=1e8),
        "",
    ),
    "Mathstral, layers listed": (
        model("mistral", 4096, 14336, 32, 32, 8, 32768, 32768, **MISTRAL, sliding_window=None,
              layer_types=["full_attention"] * 32),
        "is not known to transformers for this family: it builds no model",
    ),
    "Mixtral-8x7B": (model("mixtral", 4096, 14336, 32, 32, 8, 32000, 32768, **MIXTRAL, sliding_window=None), ""),
    "Mixtral-8x22B": (model("mixtral", 6144, 16384, 56, 48, 8, 32768, 65536, **MIXTRAL, sliding_window=None), ""),
    "Mixtral with noise": (
        model("mixtral", 4096, 14336, 32, 32, 8, 32000, 32768, **MIXTRAL, router_jitter_noise=0.1),
        "router_jitter_noise = 0.1 changes what the model computes",
    ),
    "Phi-3-mini": (model("phi3", 3072, 8192, 32, 32, 32, 32064, 4096, sliding_window=2047), NOT_KNOWN),
    "phi-4": (model("phi3", 5120, 17920, 40, 40, 10, 100352, 16384), NOT_KNOWN),
    "gemma-2-9b": (model("gemma2", 3584, 14336, 42, 16, 8, 256000, 8192, final_logit_softcapping=30.0), NOT_KNOWN),
    "gemma-3-1b": (model("gemma3_text", 1152, 6912, 26, 4, 1, 262144, 32768, rope_local_base_freq=10000), NOT_KNOWN),
    "internlm2-7b": (model("internlm2", 4096, 14336, 32, 32, 8, 92544, 32768, bias=False), NOT_KNOWN),
    "InternLM as a Llama": (
        model("llama", 4096, 11008, 32, 32, 32, 103168, 2048, **LLAMA, bias=True), "bias = true is not supported"
    ),
    "granite-3": (model("granite", 2048, 8192, 40, 32, 8, 49155, 4096, logits_scaling=8.0), NOT_KNOWN),
    "MiniCPM as a Llama": (
        model("llama", 2304, 5760, 40, 36, 36, 122753, 4096, **LLAMA, scale_emb=12, scale_depth=1.4),
        "scale_emb = 12 changes what the model computes",
    ),
    "OLMo-2-7B": (model("olmo2", 4096, 11008, 32, 32, 32, 100352, 4096), NOT_KNOWN),
    "Seed-OSS-36B": (
        model("seed_oss", 5120, 27648, 64, 80, 8, 155136, 524288, architectures=["SeedOssForCausalLM"], head_dim=128,
              attention_bias=True, attention_out_bias=False, mlp_bias=False, residual_dropout=0.1, rope_theta=1e7,
              rope_scaling={"rope_type": "default"}),
        "",
    ),
    "Falcon3-7B": (
        model("llama", 3072, 23040, 28, 12, 4, 131072, 32768, **LLAMA, head_dim=256, rope_theta=1000042), ""
    ),
    "MiMo-7B": (model("mimo", 4096, 11008, 36, 32, 8, 151680, 32768, num_nextn_predict_layers=1), NOT_KNOWN),
    "Nemotron-Nano as a Llama": (
        model("llama", 4096, 14336, 32, 32, 8, 128256, 131072, **LLAMA, rope_theta=500000.0, rope_scaling=LLAMA3,
              block_configs=[{"attention": {"no_op": True}}]),
        "block_configs = ",
    ),
}  # fmt: skip
