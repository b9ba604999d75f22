"""The practical floor: a transformers model and torch's AdamW in a plain loop, rows of equal length, no padding."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.train_step.case import CLIP_HIGH, CLIP_LOW, GRAD_CLIP, LEARNING_RATE, WEIGHT_DECAY
from megatron_nft.nft.loss import clipped_loss
from megatron_nft.types import TrainSequence


def build(model_folder: str, sequences: Sequence[TrainSequence], tokens_per_batch: int) -> Callable[[], dict]:
    """A function that makes one update on the sequences, and returns its loss and gradient norm."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = equal_rows(sequences, tokens_per_batch)
    num_answer_tokens = sum(s.num_answer_tokens for s in sequences)

    def step() -> dict:
        optimizer.zero_grad()
        total = 0.0
        for token_ids_RT, old_logprobs_RA, advantages_RA in batches:
            answer = old_logprobs_RA.shape[1]
            logits = model(token_ids_RT, logits_to_keep=answer + 1, use_cache=False).logits[:, :-1]
            logprobs_RA = torch.log_softmax(logits, -1).gather(-1, token_ids_RT[:, -answer:, None])[..., 0]
            losses_RA = clipped_loss(
                logprobs_RA, old_logprobs_RA, advantages_RA, clip_low=CLIP_LOW, clip_high=CLIP_HIGH
            )
            loss = losses_RA.sum() / num_answer_tokens
            loss.backward()
            total += loss.item()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        return {"loss": total, "grad_norm": grad_norm.item()}

    return step


def equal_rows(sequences: Sequence[TrainSequence], tokens_per_batch: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Token ids, old log-probs and advantages of sequences with equal prompts and answers, longest first."""
    by_shape = defaultdict(list)
    for s in sequences:
        by_shape[s.num_tokens, s.num_prompt_tokens].append(s)
    batches = []
    for (length, _), members in sorted(by_shape.items(), reverse=True):
        rows = max(1, tokens_per_batch // length)
        for first in range(0, len(members), rows):
            some = members[first : first + rows]
            old_logprobs_RA = torch.from_numpy(np.stack([s.old_logprobs_A for s in some]))
            advantages_RA = torch.tensor([s.advantage for s in some])[:, None].expand_as(old_logprobs_RA)
            token_ids_RT = torch.from_numpy(np.stack([s.token_ids_T for s in some])).long()
            batches.append((token_ids_RT, old_logprobs_RA, advantages_RA))
    return batches
