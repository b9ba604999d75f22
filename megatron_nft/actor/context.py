"""Context parallelism: which tokens of packed sequences a rank holds, and what it gathers from the others.

Every sequence is cut into 2 x size pieces, and rank r holds pieces r and 2 x size - 1 - r: an early one, whose queries
see few keys, and a late one, whose queries see many, so that all ranks have the same attention to do. That is the
convention of Megatron-Core's rotary embedding and of TransformerEngine's attention. Called by actor/packed.py,
actor/attention.py and actor/pipeline.py. Shape suffix: _T tokens of the whole pack.
"""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor


class ContextShare:
    """One rank's share of sequences that lie end to end."""

    def __init__(self, lengths: list[int], size: int = 1, rank: int = 0) -> None:
        """
        Args:
            lengths: tokens of each sequence; multiples of 2 x size unless size is 1.
            size, rank: of the context-parallel group.

        Raises:
            ValueError: a sequence does not split into 2 x size pieces.
        """
        if size > 1 and any(length % (2 * size) for length in lengths):
            raise ValueError(f"sequences of {lengths} tokens do not split into 2 x {size} pieces; pad them")
        self.size, self.rank = size, rank
        length_S = torch.tensor(lengths)[:, None]
        start_S = length_S.cumsum(0) - length_S
        by_rank = [
            (start_S + position)[real] for position, real in (_positions(length_S, size, r) for r in range(size))
        ]
        self.tokens = by_rank[rank]
        """int64: this rank's tokens, as positions in the pack."""
        self.gathered_T = torch.cat(by_rank).argsort()
        """int64 [T]: where each token of the pack lies after a gather of all ranks' shares, rank by rank."""

    def positions(self, length_S: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of this rank's tokens in sequences of these lengths [S, 1], padded with 0; and which are real.

        Returns:
            int64 and bool, [S, most tokens / size].
        """
        return _positions(length_S, self.size, self.rank)

    def split(self, index_A: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Who holds which of these tokens of the pack, given as positions.

        Returns:
            own_A: bool, whether this rank does; index_O: where in its share; order_A and most: as `gather_answers`
            wants them.
        """
        gathered_A = self.gathered_T[index_A]
        rank_A, local_A = gathered_A // len(self.tokens), gathered_A % len(self.tokens)
        counts = rank_A.bincount(minlength=self.size)
        most, order_A = int(counts.max()), torch.empty_like(rank_A)
        for rank in range(self.size):
            order_A[rank_A == rank] = rank * most + torch.arange(int(counts[rank]))
        own_A = rank_A == self.rank
        return own_A, local_A[own_A], order_A, most


def _positions(length_S: Tensor, size: int, rank: int) -> tuple[Tensor, Tensor]:
    column = torch.arange(int(length_S.max()) // size)
    is_real = column < length_S // size
    piece = length_S // (2 * size)
    early = rank * piece + column
    late = (2 * size - 1 - rank) * piece + column - piece
    return torch.where(is_real, torch.where(column < piece, early, late), 0), is_real


def gather_answers(values: Tensor, order_A: Tensor, most: int) -> Tensor:
    """What the context-parallel ranks have computed for their own answer tokens, on all of them and in order.

    A collective of the context-parallel group. In the backward pass every rank keeps the gradient of its own values:
    the ranks compute the same loss of them, and their gradients are summed later.

    Args:
        values: float [own answer tokens, ...].
        order_A: int64 [A]: where each answer token lies in the ranks' values, each padded to `most`.
        most: most answer tokens of any rank.
    """
    padded = torch.cat([values, values.new_zeros(most - len(values), *values.shape[1:])])
    group = parallel_state.get_context_parallel_group()
    return gather_from_sequence_parallel_region(padded, tensor_parallel_output_grad=False, group=group)[order_A]
