"""Models of the published runs' layer shapes, with few layers, and batches for them; tiny ones where it is dry."""

import json
from pathlib import Path

import numpy as np
import torch

from megatron_nft.config import Config, load_config
from megatron_nft.data.packing import pack
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.parameters import parameters
from megatron_nft.types import MicroBatch, TrainSequence
from tests.gpu.prove.report import is_dry

RECIPE = "launch/recipes/nft_qwen2.5_math_7b_4x8h100.toml"
QWEN2 = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": False, "max_position_embeddings": 131072, "num_hidden_layers": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES = {
    "7b": {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944},
    "32b": {"hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 8, "intermediate_size": 27648},
}
"""Qwen2.5-Math-7B's and Qwen2.5-32B's."""
TINY = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160}
VOCABULARY, TINY_VOCABULARY = 152_064, 512


def device() -> torch.device:
    return torch.device("cpu" if is_dry() else "cuda")


def make_model(shape: str, folder: Path, *, vocabulary: int = VOCABULARY) -> Path:
    """An HF folder with random weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    size = TINY | {"vocab_size": TINY_VOCABULARY} if is_dry() else SHAPES[shape] | {"vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(QWEN2 | size))
    tensors = {}
    for parameter in parameters(read_hf_config(folder)):
        for name, dims in parameter.hf_shapes.items():
            tensor = torch.empty(dims, dtype=torch.bfloat16, device=device())
            tensors[name] = (tensor.fill_(1.0) if "norm" in name else tensor.normal_(0, 0.02)).cpu()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def recipe(model: Path, *overrides: str) -> Config:
    """The 7B recipe on one rank: two groups of two answers, 4 sequences of 4,096 tokens in two microbatches."""
    dry = ["data.max_prompt_tokens=16", "rollout.max_answer_tokens=48", "actor.tokens_per_microbatch=128",
           "cluster.device=cpu", "actor.precision=fp32", "rollout.dtype=float32"]  # fmt: skip
    return load_config(RECIPE, [
        f'model.path="{model}"', 'data.train=["none"]', "data.held_out=[]",
        "cluster.placement=split", "rollout.engines=1", "rollout.tp=1",
        "actor.tp=1", "actor.pp=1", "actor.cp=1", "actor.dp=1", "actor.sequence_parallel=false",
        "train.groups_per_step=2", "train.updates_per_step=1", "rollout.group_size=2",
        *overrides, *(dry if is_dry() else ()),
    ])  # fmt: skip


def make_batch(config: Config) -> list[MicroBatch]:
    """Random tokens, of the longest sequences that the recipe allows, scored as a uniform guess."""
    hf = read_hf_config(config.model.path)
    numbers = np.random.default_rng(0)
    prompt, answer = config.data.max_prompt_tokens, config.rollout.max_answer_tokens
    sequences = [
        TrainSequence(
            token_ids_T=numbers.integers(0, hf.vocab_size, prompt + answer).astype(np.int32),
            num_prompt_tokens=prompt,
            verdict=float(index % 2),
            correct_rate=0.5,
            engine_logprobs_A=np.zeros(answer, np.float32),
            old_logprobs_A=np.full(answer, -np.log(hf.vocab_size), np.float32),
        )
        for index in range(config.train.groups_per_step * config.rollout.group_size)
    ]
    batch = pack([sequences], num_updates=1, dp=1, tokens_per_microbatch=config.actor.tokens_per_microbatch,
                 attention_parity_tokens=hf.attention_parity_tokens)  # fmt: skip
    return list(batch.updates[0][0])


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()
