"""Small random models of the families that a sync is tested with, in HF folders that vLLM and Megatron read."""

from pathlib import Path

from tests.parallel.oracle import save_random

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
FAMILIES = {
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 64},  # heads wider than hidden_size / heads
    "llama 3": {"tie_word_embeddings": False, "rope_parameters": LLAMA3},
}
OTHERS = {
    "mistral": {"tie_word_embeddings": False, "sliding_window": None},
    "seed_oss": {"tie_word_embeddings": False, "head_dim": 64},
}
"""Families whose tables are those of one above: not for every product of layouts and carriers."""
EIGHT = {"num_experts": 8, "moe_intermediate_size": 64, "num_experts_per_tok": 2, "tie_word_embeddings": False}
MIXTURES = {
    "qwen3_moe": EIGHT | {"norm_topk_prob": True},
    "qwen3_moe mixed": EIGHT | {"norm_topk_prob": True, "mlp_only_layers": [1], "tie_word_embeddings": True},
    "qwen2_moe": EIGHT | {"shared_expert_intermediate_size": 96},
    "mixtral": {"num_local_experts": 8, "intermediate_size": 64, "tie_word_embeddings": False},
}
"""With experts, so for layouts of their own."""
DIMENSIONS = {
    "hidden_size": 128, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1027, "max_position_embeddings": 1024,
    "initializer_range": 0.15, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
"""A vocabulary that no tensor-parallel size divides; several MiB, so that there are several buckets."""


def make_folder(family: str, dtype: str, seed: int, folder: Path, **changes: object) -> Path:
    """A model whose every weight depends on `seed`, norms and biases too, and a tokenizer of the words w3, w4, ...

    Args:
        changes: of config.json.
    """
    from transformers import AutoConfig

    config = AutoConfig.for_model(family.split()[0], **(DIMENSIONS | (FAMILIES | OTHERS | MIXTURES)[family] | changes))
    save_random(config, folder, seed=seed, dtype=dtype)
    save_tokenizer(folder, DIMENSIONS["vocab_size"])
    return folder


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer of the words w3, w4, ..., beside a model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    whole.save_pretrained(folder)
