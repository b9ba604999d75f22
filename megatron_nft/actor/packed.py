"""A microbatch as tensors: sequences end to end, and what the loss needs at each answer token.

A MicroBatch comes in, a PackedTokens on the rank's device goes out. Called by actor/pipeline.py.
Shape suffixes: _T tokens of the pack, _A answer tokens of all its sequences, end to end.
"""

from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_nft.actor.attention import pack_bounds
from megatron_nft.types import MicroBatch, TrainSequence


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """One forward pass. An empty microbatch becomes one padding token that weighs nothing."""

    token_ids_T: Tensor  # int64 [T]
    positions_T: Tensor  # int64 [T], counted from 0 in each sequence
    bounds: PackedSeqParams
    logit_index_A: Tensor  # int64 [A]: position in the pack whose logits predict the answer token
    labels_A: Tensor  # int64 [A]: the answer tokens
    engine_logprobs_A: Tensor  # float32 [A]
    old_logprobs_A: Tensor  # float32 [A]; zeros while not scored yet
    reference_logprobs_A: Tensor  # float32 [A]; zeros without a reference model
    verdicts_A: Tensor  # float32 [A]
    correct_rates_A: Tensor  # float32 [A]
    advantages_A: Tensor  # float32 [A]
    sequence_ids_A: Tensor  # int64 [A]
    answer_tokens_A: Tensor  # float32 [A]: tokens of the whole answer
    weights_A: Tensor  # float32 [A]: 1, or 0 for the stand-in of an empty microbatch


def pack_tokens(microbatch: MicroBatch, device: torch.device, multiple_of: int = 1) -> PackedTokens:
    """Packs a microbatch; `multiple_of` pads the pack at its end, as sequence parallelism needs."""
    sequences, weight = microbatch.sequences, 1.0
    if not sequences:
        sequences, weight = (_STAND_IN,), 0.0
    lengths = [s.num_tokens for s in sequences]
    token_ids = [s.token_ids_T for s in sequences]
    starts = np.cumsum([0, *lengths[:-1]])
    if padding := -sum(lengths) % multiple_of:
        token_ids.append(np.zeros(padding, np.int32))
        lengths.append(padding)

    def per_token(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        repeats = [s.num_answer_tokens for s in sequences]
        return torch.from_numpy(np.repeat(np.asarray(values), repeats)).to(device, dtype)

    def joined(logprobs: list[np.ndarray | None]) -> Tensor:
        known = [np.zeros(s.num_answer_tokens) if x is None else x for s, x in zip(sequences, logprobs, strict=True)]
        return torch.from_numpy(np.concatenate(known)).to(device, torch.float32)

    logit_index = [
        start + np.arange(s.num_prompt_tokens, s.num_tokens) - 1 for start, s in zip(starts, sequences, strict=True)
    ]
    labels = [s.token_ids_T[s.num_prompt_tokens :] for s in sequences]
    return PackedTokens(
        token_ids_T=torch.from_numpy(np.concatenate(token_ids)).to(device, torch.int64),
        positions_T=torch.cat([torch.arange(length) for length in lengths]).to(device),
        bounds=pack_bounds(lengths, device),
        logit_index_A=torch.from_numpy(np.concatenate(logit_index)).to(device, torch.int64),
        labels_A=torch.from_numpy(np.concatenate(labels)).to(device, torch.int64),
        engine_logprobs_A=joined([s.engine_logprobs_A for s in sequences]),
        old_logprobs_A=joined([s.old_logprobs_A for s in sequences]),
        reference_logprobs_A=joined([s.reference_logprobs_A for s in sequences]),
        verdicts_A=per_token([s.verdict for s in sequences]),
        correct_rates_A=per_token([s.correct_rate for s in sequences]),
        advantages_A=per_token([s.advantage for s in sequences]),
        sequence_ids_A=per_token(list(range(len(sequences))), torch.int64),
        answer_tokens_A=per_token([s.num_answer_tokens for s in sequences]),
        weights_A=per_token([weight] * len(sequences)),
    )


_STAND_IN = TrainSequence(
    token_ids_T=np.zeros(2, np.int32),
    num_prompt_tokens=1,
    verdict=1.0,
    correct_rate=0.5,
    engine_logprobs_A=np.zeros(1, np.float32),
)
