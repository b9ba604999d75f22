"""Published figures, and the settings with which the planner is asked for the same.

Each row has what its publication says, and under `assumed` what it leaves open.
Sources: NeMo-RL's performance summary (0.4, a later one, and 0.7) and its recipes; DAPO (arXiv 2503.14476); NVIDIA's
Megatron pretraining figures for Llama 3; verl's weight-transfer figures.
"""

from dataclasses import dataclass, field
from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
COMMON = {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131072, "tie_word_embeddings": False}
MODELS = {
    "Llama3.1-8B": {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "rope_scaling": LLAMA3_ROPE,
    },
    "Llama3-70B": {
        "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
    },
    "Qwen3-32B": {
        "model_type": "qwen3", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 25600, "vocab_size": 151936,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
    },
    "Qwen2.5-32B": {
        "model_type": "qwen2", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8, "intermediate_size": 27648, "vocab_size": 152064,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
    },
}  # fmt: skip
"""config.json of each."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published figure and the settings that the planner gets."""

    name: str
    published: tuple[float, float]  # lowest and highest
    unit: str  # "s a step", "s a sync", "TFLOP/s a GPU"
    model: str
    machine: str = "H100"
    settings: dict[str, dict[str, Any]]
    answer_tokens: float
    prompt_tokens: float
    mixed_share: float = 1.0
    is_overlapped: bool = False  # rollouts of the next step beside training
    weights_out: int = 0  # times that its program copies a rank's weights to the host, which ours doesn't ...
    weights_back: int = 0  # ... and back
    assumed: str
    changed: dict[str, Any] = field(default_factory=dict)  # of the machine


def nemo(
    model: str,
    *,
    engines: int,
    engine_tp: int,
    actor: dict,
    sequence: float,
    overlapped: bool,
    updates: int = 4,
    **more: Any,
) -> dict:
    """The settings that NeMo-RL's rows share: 64 prompts x 32 answers, sequences of 4096 tokens at most.

    Before the reference model scores, its weights take the place of the policy's, which go to the host and come back
    (`use_reference_model`); colocated, the policy's weights wait there while engines generate, too
    (`offload_after_refit`).

    Args:
        updates: 4 of 512 answers, or, from 0.7 on, one of all 2,048.
    """
    prompt = 150
    return {
        "weights_out": 1 if overlapped else 2,
        "weights_back": 2 if overlapped else 3,
        "model": model,
        "answer_tokens": sequence - prompt,
        "prompt_tokens": prompt,
        "is_overlapped": overlapped,
        "unit": "s a step",
        "settings": {
            "data": {"train": ["-"], "max_prompt_tokens": prompt},
            "rollout": {"engines": engines, "tp": engine_tp, "group_size": 32, "max_answer_tokens": 4096 - prompt,
                        "max_concurrent": 1024, "gpu_memory_fraction": 0.8 if overlapped else 0.6},
            "verdict": {"workers": 8},
            "algorithm": {"name": "grpo", "kl_weight": 0.01},
            "actor": {"tokens_per_microbatch": 4096, **OVERLAP, **actor},
            "train": {"groups_per_step": 64, "updates_per_step": updates},
            "cluster": {"placement": "split" if overlapped else "colocated"},
        },
        **more,
    }  # fmt: skip


def dapo(answer_tokens: int) -> Row:
    """DAPO's run, whose publication leaves the mean length of its answers open."""
    return Row(
        name=f"DAPO, Qwen2.5-32B, 128 A800, if the mean answer has {answer_tokens} tokens",
        published=(31 * 60, 31 * 60),
        unit="s a step",
        model="Qwen2.5-32B",
        machine="A100",
        changed={"name": "A800", "nvlink_gb_s": 200.0},
        answer_tokens=answer_tokens,
        prompt_tokens=200,
        mixed_share=1 / 3,
        assumed="3 groups sampled for one that is kept; Megatron in the place of FSDP with Ulysses",
        settings={
            "data": {"train": ["-"], "max_prompt_tokens": 2048},
            "rollout": {"engines": 32, "tp": 4, "max_answer_tokens": 20480, "gpu_memory_fraction": 0.8},
            "verdict": {"workers": 64},
            "actor": {
                "tp": 8, "pp": 2, "dp": 8, "sequence_parallel": True, "recompute": "full",
                "tokens_per_microbatch": 22528,
            },
            "algorithm": {"name": "dapo"},
            "cluster": {"placement": "colocated"},
        },
    )  # fmt: skip


NEMO = "prompts of 150 tokens; lengths lognormal, cut; a reference model scores, too (its recipes: KL 0.01)"
OTHER = "another trainer, engine and path; this project's"
QWEN3 = {"actor": {"tp": 4, "pp": 4, "dp": 2, "sequence_parallel": True}, "engines": 8, "engine_tp": 4}
LLAMA = {"engine_tp": 1}
FULL = {"pp": 2, "recompute": "full"}
PRETRAIN = {
    "data": {"train": ["-"], "max_prompt_tokens": 1},
    "rollout": {"group_size": 2, "max_answer_tokens": 8191},
    "train": {"groups_per_step": 64, "updates_per_step": 1},
}

ROWS = [
    Row(
        name="NeMo-RL 0.4, Qwen3-32B, 32 H100",
        published=(393, 393),
        assumed=NEMO,
        **nemo("Qwen3-32B", **QWEN3, sequence=3206, overlapped=False),
    ),
    Row(
        name="NeMo-RL, Qwen3-32B, 32 H100",
        published=(376, 376),
        assumed=NEMO,
        **nemo("Qwen3-32B", **QWEN3, sequence=3251, overlapped=False),
    ),
    Row(
        name="NeMo-RL 0.4, Qwen3-32B, 64 H100, one step off",
        published=(215, 215),
        assumed=NEMO + "; 32 GPUs train, 32 generate",
        **nemo("Qwen3-32B", **QWEN3, sequence=3207, overlapped=True),
    ),
    Row(
        name="NeMo-RL, Qwen3-32B, 64 H100, one step off",
        published=(200, 200),
        assumed=NEMO + "; 32 GPUs train, 32 generate; 3362 tokens (538 tokens/s/GPU x 200 s)",
        **nemo("Qwen3-32B", **QWEN3, sequence=3362, overlapped=True),
    ),
    Row(
        name="NeMo-RL 0.7, Qwen3-32B, 32 H100",
        published=(323, 323),
        assumed=NEMO + "; batch of 2,048",
        **nemo("Qwen3-32B", **QWEN3, sequence=3256, overlapped=False, updates=1),
    ),
    Row(
        name="NeMo-RL 0.7, Qwen3-32B, 64 H100, one step off",
        published=(161, 161),
        assumed=NEMO + "; batch of 2,048; 32 GPUs train, 32 generate",
        **nemo("Qwen3-32B", **QWEN3, sequence=3258, overlapped=True, updates=1),
    ),
    Row(
        name="NeMo-RL 0.7, Qwen3-30B-A3B, 32 H100",
        published=(171, 171),
        assumed=NEMO + "; batch of 2,048; ep 8, no other axis; engines of tp 2",
        **nemo(
            "Qwen3-30B-A3B",
            engines=16,
            engine_tp=2,
            actor={"dp": 32, "ep": 8},
            sequence=3198,
            overlapped=False,
            updates=1,
        ),
    ),
    Row(
        name="NeMo-RL 0.7, Qwen3-30B-A3B, 32 H100, one step off",
        published=(141, 141),
        assumed=NEMO + "; batch of 2,048; ep 8, pp 2 on 16 GPUs; 16 generate, engines of tp 2",
        **nemo(
            "Qwen3-30B-A3B",
            engines=8,
            engine_tp=2,
            actor={"dp": 8, "pp": 2, "ep": 8},
            sequence=3203,
            overlapped=True,
            updates=1,
        ),
    ),
    Row(
        name="NeMo-RL 0.4, Llama3.1-8B, 16 H100",
        published=(97.7, 97.7),
        assumed=NEMO + "; full recomputation (its recipe)",
        **nemo("Llama3.1-8B", **LLAMA, engines=16, actor={**FULL, "dp": 8}, sequence=1060, overlapped=False),
    ),
    Row(
        name="NeMo-RL, Llama3.1-8B, 16 H100",
        published=(92.8, 92.8),
        assumed=NEMO + "; full recomputation; 1146 tokens (1581 tokens/s/GPU x 92.8 s)",
        **nemo("Llama3.1-8B", **LLAMA, engines=16, actor={**FULL, "dp": 8}, sequence=1146, overlapped=False),
    ),
    Row(
        name="NeMo-RL 0.4, Llama3.1-8B, 16 H100, one step off",
        published=(74.6, 74.6),
        assumed=NEMO + "; full recomputation; 8 GPUs train, 8 generate",
        **nemo("Llama3.1-8B", **LLAMA, engines=8, actor={**FULL, "dp": 4}, sequence=1129, overlapped=True),
    ),
    Row(
        name="NeMo-RL, Llama3.1-8B, 16 H100, one step off",
        published=(64.8, 64.8),
        assumed=NEMO + "; full recomputation; 8 GPUs train, 8 generate; 1129 tokens, as in 0.4",
        **nemo("Llama3.1-8B", **LLAMA, engines=8, actor={**FULL, "dp": 4}, sequence=1129, overlapped=True),
    ),
    dapo(3000),
    dapo(6000),
    Row(
        name="Megatron pretraining, Llama3-8B FP8",
        published=(744, 744),
        unit="TFLOP/s a GPU",
        model="Llama3.1-8B",
        answer_tokens=8191,
        prompt_tokens=1,
        assumed="8 GPUs, dp 8; 8192 tokens, 128 sequences an update",
        settings={
            **PRETRAIN,
            "actor": {"dp": 8, "precision": "fp8-tensorwise", "tokens_per_microbatch": 8192, **OVERLAP},
        },
    ),
    Row(
        name="Megatron pretraining, Llama3-8B BF16",
        published=(744 / 1.6, 744 / 1.5),
        unit="TFLOP/s a GPU",
        model="Llama3.1-8B",
        answer_tokens=8191,
        prompt_tokens=1,
        assumed="published is FP8's over its gain of 1.5 to 1.6; 8 GPUs, dp 8; 8192 tokens, 128 sequences",
        settings={**PRETRAIN, "actor": {"dp": 8, "tokens_per_microbatch": 8192, **OVERLAP}},
    ),
    Row(
        name="Megatron pretraining, Llama3-70B FP8",
        published=(719, 736),
        unit="TFLOP/s a GPU",
        model="Llama3-70B",
        answer_tokens=8191,
        prompt_tokens=1,
        assumed="64 GPUs, tp 4, pp 8 with 5 virtual stages, dp 2, overlapped messages; 8192 tokens, 128 sequences",
        settings={
            **PRETRAIN,
            "actor": {
                "tp": 4,
                "pp": 8,
                "vpp": 5,
                "dp": 2,
                "sequence_parallel": True,
                "precision": "fp8-tensorwise",
                "tp_comm_overlap": True,
                "tokens_per_microbatch": 8192,
                **OVERLAP,
            },
        },
    ),
    Row(
        name="verl, 7B, FSDP to SGLang over NCCL",
        published=(5.5, 6.0),
        unit="s a sync",
        model="Qwen2.5-7B",
        answer_tokens=1000,
        prompt_tokens=200,
        assumed=OTHER + ": 8 + 8 GPUs, tp 2",
        settings={
            "data": {"train": ["-"]},
            "rollout": {"engines": 8},
            "actor": {"tp": 2, "dp": 4, "sequence_parallel": True},
        },
    ),
    Row(
        name="verl, 32B, FSDP to SGLang over NCCL",
        published=(14.0, 18.0),
        unit="s a sync",
        model="Qwen2.5-32B",
        answer_tokens=1000,
        prompt_tokens=200,
        assumed=OTHER + ": 16 + 8 GPUs, tp 8 and pp 2, engines of tp 4",
        settings={
            "data": {"train": ["-"]},
            "rollout": {"engines": 2, "tp": 4},
            "actor": {"tp": 8, "pp": 2, "sequence_parallel": True},
        },
    ),
]

NOT_PLANNED = [
    "NeMo-RL 0.7, Qwen3-32B on 16 and 32 GB200, 295 and 140 s a step: no layout published, nodes of 4 devices",
    "NeMo-RL FP8, Llama3.1-8B, 53.0 s: engines with FP8 weights; rollout.dtype has no FP8",
    "NeMo-RL Qwen3-235B, DeepSeek V3, refits of 30B-A3B and 235B: no layout published, a family that is not supported, "
    "or another mechanism",
    "miles 27B on 8 H200, 2.5 s a sync; verl's 72B and delta syncs: no layout published, or another mechanism",
]
