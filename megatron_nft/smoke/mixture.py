"""A small random mixture of experts for megatron_nft.smoke: there is none in the repository, and none is fetched.

Every rank writes one for itself, the same numbers on each. Names and shapes are those that the family says.
"""

import json
from pathlib import Path

from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.parameters import parameters

CONFIG = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 128, "intermediate_size": 256,
    "moe_intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 32, "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True, "vocab_size": 640,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
SCALE = 0.1
"""Of the numbers: large enough for experts, and so for routing, to show in the log-probs."""


def make_mixture(folder: Path) -> Path:
    """Writes it."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    numbers, tensors = torch.Generator().manual_seed(0), {}
    for parameter in parameters(read_hf_config(folder)):
        for name, shape in parameter.hf_shapes.items():
            middle = 1.0 if "norm" in name else 0.0
            tensors[name] = middle + SCALE * torch.randn(shape, generator=numbers)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
