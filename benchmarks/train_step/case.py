"""What all contestants train on: a Qwen2 of 4.36 M parameters with random weights, and 256 sequences of given lengths.

The objective is DAPO's clipped one with the mean over all answer tokens, since all contestants have it; the NFT loss
differs from it in a few operations per answer token. Old log-probs are a uniform guess, moved, so that ratios differ
from 1 and some are clipped.
"""

from pathlib import Path

import numpy as np

from megatron_nft.types import TrainSequence

NUM_SEQUENCES, GROUP_SIZE, VOCABULARY = 256, 16, 3200
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
LEARNING_RATE, WEIGHT_DECAY, GRAD_CLIP = 1e-6, 0.1, 1.0
CASES = {
    "equal": "prompts of 32 tokens, answers of 32",
    "spread": "prompts of 8 tokens, answers of 1 to 128: exponential with a mean of 30, cut at 128",
}
MODEL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def write_model(folder: Path) -> None:
    """Makes the model's HF folder: 4.36 M parameters, fp32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**MODEL)).save_pretrained(folder)


def make_sequences(case: str, num_sequences: int = NUM_SEQUENCES) -> list[TrainSequence]:
    """The sequences of a case, in groups of 16 with one advantage for right answers and one for wrong ones."""
    draws = np.random.default_rng(0)
    if case == "equal":
        prompt, answers = 32, np.full(num_sequences, 32)
    else:
        prompt, answers = 8, np.ceil(draws.exponential(30.0, num_sequences)).astype(int).clip(1, 128)
        answers[0] = 128
    sequences = []
    for length in answers.tolist():
        right = bool(draws.integers(2))
        old_logprobs = -np.log(VOCABULARY) + draws.normal(0, 0.3, length)
        sequences.append(
            TrainSequence(
                token_ids_T=draws.integers(0, VOCABULARY, prompt + length).astype(np.int32),
                num_prompt_tokens=prompt,
                verdict=float(right),
                correct_rate=0.5,
                advantage=1.0 if right else -1.0,
                engine_logprobs_A=old_logprobs.astype(np.float32),
                old_logprobs_A=old_logprobs.astype(np.float32),
            )
        )
    return sequences
