"""A microbatch as tensors: sequences end to end, and what the loss needs at each answer token.

A MicroBatch comes in, a PackedTokens on the rank's device goes out. Called by actor/pipeline.py.
Shape suffixes: _T tokens of the pack that this rank holds (all of them, without context parallelism), _A answer tokens
of all its sequences, end to end, _O those of them whose logits this rank computes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_nft.actor.attention import pack_bounds
from megatron_nft.actor.context import ContextShare
from megatron_nft.actor.topology import Topology
from megatron_nft.types import LOSS_COLUMNS, MicroBatch, TrainSequence, join_columns


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """One forward pass. An empty microbatch becomes one padding token that weighs nothing."""

    token_ids_T: Tensor  # int64 [T]
    positions_T: Tensor  # int64 [T], counted from 0 in each sequence
    source_T: Tensor  # int64 [T], on the host: which of the sequences' tokens each is, end to end; -1: padding
    bounds: PackedSeqParams
    logit_index_O: Tensor  # int64 [O]: position in this rank's tokens whose logits predict the answer token
    labels_O: Tensor  # int64 [O]: the answer tokens
    own_A: Tensor  # bool [A]: which answer tokens those are
    gather_A: Tensor  # int64 [A]: where each answer token lies in all ranks' own ones, each padded to gather_most
    gather_most: int
    columns: Mapping[str, Tensor]  # [A, ...]: LOSS_COLUMNS and "sequence_id", and the answers' further ones
    is_scored: bool  # old_logprobs are known; else they are those of this very pass
    answer_tokens_A: Tensor  # float32 [A]: tokens of the whole answer
    weights_A: Tensor  # float32 [A]: 1, or 0 for the stand-in of an empty microbatch

    def labels_and(self, name: str) -> Tensor:
        """The answer tokens, and further ids that a column has for each: int64 [O, 1 + k]."""
        further_Ok = self.take([name])[name][self.own_A]
        return torch.cat([self.labels_O[:, None], further_Ok.long()], 1)

    def with_old_logprobs(self, logprobs_A: Tensor) -> "PackedTokens":
        """The same, scored: by its own forward pass, which gives the loss a ratio of exactly 1."""
        return replace(self, columns={**self.columns, "old_logprobs": logprobs_A.detach()}, is_scored=True)

    def take(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some of the columns.

        Raises:
            KeyError: the answers have no such column; the message has those that they have.
        """
        if missing := [name for name in names if name not in self.columns]:
            raise KeyError(f"the loss takes {', '.join(missing)}, and the answers have only {', '.join(self.columns)}")
        return {name: self.columns[name] for name in names}


def pack_tokens(microbatch: MicroBatch, topology: Topology, multiple_of: int = 1) -> PackedTokens:
    """Packs a microbatch, and takes this rank's share of it.

    Args:
        multiple_of: the share is padded at its end to a multiple, as sequence parallelism and FP8 need.
    """
    sequences, weight, device = microbatch.sequences, 1.0, topology.device
    if not sequences:
        blank = {name: np.zeros((1, *x.shape[1:]), x.dtype) for name, x in microbatch.blank.items()}
        sequences, weight = (replace(_STAND_IN, columns=blank),), 0.0
    # Context parallelism cuts every sequence into 2 x cp pieces: padding tokens at a sequence's end are seen by none.
    pieces = 2 * topology.cp_size if topology.cp_size > 1 else 1
    padded = [np.pad(s.token_ids_T, (0, -s.num_tokens % pieces)) for s in sequences]
    lengths = [len(tokens) for tokens in padded]
    ends = np.cumsum([0, *(s.num_tokens for s in sequences)])
    source = [
        np.pad(np.arange(first, end), (0, length - (end - first)), constant_values=-1)
        for first, end, length in zip(ends, ends[1:], lengths, strict=False)
    ]
    starts = np.cumsum([0, *lengths[:-1]])
    if padding := -sum(lengths) % np.lcm(multiple_of * topology.cp_size, pieces):
        padded.append(np.zeros(padding, np.int32))
        source.append(np.full(padding, -1))
        lengths.append(int(padding))
    share = ContextShare(lengths, topology.cp_size, topology.cp_rank)

    def per_token(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        repeats = [s.num_answer_tokens for s in sequences]
        return torch.from_numpy(np.repeat(np.asarray(values), repeats)).to(device, dtype)

    columns = {name: _of_the_loss(name, sequences).to(device, torch.float32) for name in LOSS_COLUMNS}
    columns["sequence_id"] = per_token(list(range(len(sequences))), torch.int64)
    columns |= {name: torch.from_numpy(x).to(device) for name, x in join_columns(sequences).items()}
    logit_index = [
        start + np.arange(s.num_prompt_tokens, s.num_tokens) - 1 for start, s in zip(starts, sequences, strict=True)
    ]
    labels_A = torch.from_numpy(np.concatenate([s.token_ids_T[s.num_prompt_tokens :] for s in sequences]))
    own_A, logit_index_O, gather_A, gather_most = share.split(torch.from_numpy(np.concatenate(logit_index)))
    positions = torch.cat([torch.arange(length) for length in lengths])
    return PackedTokens(
        token_ids_T=torch.from_numpy(np.concatenate(padded))[share.tokens].to(device, torch.int64),
        positions_T=positions[share.tokens].to(device),
        source_T=torch.from_numpy(np.concatenate(source))[share.tokens],
        bounds=pack_bounds(lengths, device, share),
        logit_index_O=logit_index_O.to(device),
        labels_O=labels_A[own_A].to(device, torch.int64),
        own_A=own_A.to(device),
        gather_A=gather_A.to(device),
        gather_most=gather_most,
        columns=columns,
        is_scored=_is_scored(sequences),
        answer_tokens_A=per_token([s.num_answer_tokens for s in sequences]),
        weights_A=per_token([weight] * len(sequences)),
    )


def _is_scored(sequences: Sequence[TrainSequence]) -> bool:
    known = {s.old_logprobs_A is not None for s in sequences}
    if len(known) > 1:
        raise ValueError("some answers of a microbatch have old_logprobs and some have none; score all of an update")
    return known == {True}


def _of_the_loss(name: str, sequences: Sequence[TrainSequence]) -> Tensor:
    """One of LOSS_COLUMNS, end to end: log-probs, zeros while unknown, or an answer's number at each of its tokens."""
    columns = []
    for sequence in sequences:
        values = getattr(sequence, f"{name}_A" if name.endswith("logprobs") else name)
        columns.append(np.broadcast_to(0.0 if values is None else values, sequence.num_answer_tokens))
    return torch.from_numpy(np.concatenate(columns))


_STAND_IN = TrainSequence(
    token_ids_T=np.zeros(2, np.int32),
    num_prompt_tokens=1,
    verdict=1.0,
    correct_rate=0.5,
    engine_logprobs_A=np.zeros(1, np.float32),
)
