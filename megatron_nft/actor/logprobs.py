"""Log-probs of the labels, and entropy, from the last hidden states, without ever holding a microbatch's logits.

A microbatch of 16,384 tokens with Qwen's vocabulary has 10 GB of fp32 logits, and a backward pass by autograd holds two
or three times that. Here hidden states of the answer tokens go in, log-probs come out, and logits exist for a block of
the vocabulary at a time, once in the forward and once more in the backward pass: a block's rows of the output layer are
then read and their gradient written once, however many the tokens. Where one block is all, it is kept for the backward
pass, which comes next on the last stage, and nothing is computed twice. The vocabulary is sharded over the
tensor-parallel group, whose ranks exchange a few numbers a token. Called by actor/pipeline.py on the last stage.

Shape suffixes: _O answer tokens, _L their labels, _H hidden, _V this rank's slice of the vocabulary, _B a block of it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor


class HiddenOutput(ColumnParallelLinear):
    """Megatron's output layer without its product: the tokens' hidden states come out, ready for every rank's slice.

    All tokens on all tensor-parallel ranks; backward, what the ranks' slices say of a hidden state is summed.
    """

    def forward(self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None):
        """[tokens, 1, hidden], or this rank's share of the tokens with sequence parallelism -> all tokens, no bias."""
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(input_, group=self.tp_group), None
        return copy_to_tensor_model_parallel_region(input_, group=self.tp_group), None


def label_logprobs(
    hidden_OH: Tensor,
    weight_VH: Tensor,
    labels_O: Tensor,
    *,
    temperature: float,
    vocab_size: int,
    group: dist.ProcessGroup,
    logits_bytes: int,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden @ weight.T / temperature)[label], fp32; a collective of `group`, equal on its ranks.

    Args:
        hidden_OH: [O, H], equal on all ranks of the group.
        weight_VH: [padded vocabulary / tp, H], this rank's rows of the output layer.
        labels_O: int64 [O] or [O, L], one or more ids in the whole vocabulary for each token.
        vocab_size: ids from here on are padding and get no probability.
        group: the tensor-parallel group.
        logits_bytes: at most so many bytes of fp32 logits are held at a time (but at least one column).
        with_entropy: compute the entropy of each token's distribution, too.

    Returns:
        Log-probs, shaped like the labels, and entropies in nats (fp32 [O], without gradient; None unless asked for).
    """
    first_id = dist.get_rank(group) * len(weight_VH)
    num_real = min(max(vocab_size - first_id, 0), len(weight_VH))  # 0: a small vocabulary ends on an earlier rank
    block = max(1, logits_bytes // (4 * max(len(hidden_OH), 1)))
    labels_OL = (labels_O - first_id).view(len(labels_O), -1 if len(labels_O) else 1)
    logprobs_OL, entropies_O = _LabelLogprobs.apply(
        hidden_OH.to(weight_VH.dtype), weight_VH, labels_OL, num_real, block, temperature, with_entropy, group
    )
    return logprobs_OL.view_as(labels_O), entropies_O if with_entropy else None


class _LabelLogprobs(torch.autograd.Function):
    """Block by block. With x = logits / temperature, M = max x, S = sum exp(x - M): log p = x[label] - M - log S."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_OH: Tensor,
        weight_VH: Tensor,
        labels_OL: Tensor,  # counted from this rank's first row
        num_real: int,
        block: int,
        temperature: float,
        with_entropy: bool,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        ctx.setting, ctx.kept = (num_real, block, temperature), None
        highest_O = hidden_OH.new_full((len(hidden_OH),), torch.finfo(torch.float32).min, dtype=torch.float32)
        label_OL = torch.zeros_like(labels_OL, dtype=torch.float32)
        sum_O, moment_O = torch.zeros_like(highest_O).repeat(2, 1)  # moment: sum exp(x - M) (x - M)
        for columns, x_OB in _blocks(hidden_OH, weight_VH, *ctx.setting):
            own_OL, column_OL = _own_labels(labels_OL, columns)
            label_OL += torch.where(own_OL, x_OB.gather(1, column_OL), 0.0)
            sum_O, moment_O, highest_O = _rebased(sum_O, moment_O, highest_O, x_OB.amax(-1).maximum(highest_O))
            x_OB -= highest_O[:, None]
            if with_entropy:
                moment_O += x_OB.exp().mul_(x_OB).sum(-1)
            sum_O += x_OB.exp_().sum(-1)
            if columns == slice(0, num_real) and ctx.needs_input_grad[0]:
                ctx.kept = (columns, x_OB, highest_O)
        highest_of_all_O = highest_O.clone()
        dist.all_reduce(highest_of_all_O, op=dist.ReduceOp.MAX, group=group)
        sum_O, moment_O, highest_O = _rebased(sum_O, moment_O, highest_O, highest_of_all_O)
        totals = torch.cat([label_OL, sum_O[:, None], moment_O[:, None]], 1)
        dist.all_reduce(totals, group=group)
        label_OL, sum_O, moment_O = totals[:, :-2], totals[:, -2], totals[:, -1]
        ctx.save_for_backward(hidden_OH, weight_VH, labels_OL, highest_O, sum_O)
        entropies_O = sum_O.log() - moment_O / sum_O
        ctx.mark_non_differentiable(entropies_O)
        return (label_OL - highest_O[:, None]) - sum_O.log()[:, None], entropies_O

    @staticmethod
    def backward(ctx: Any, grad_OL: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """d log p[label] / d logits = (one(label) - p) / temperature, for this rank's slice; no collective."""
        hidden_OH, weight_VH, labels_OL, highest_O, sum_O = ctx.saved_tensors
        grad_OL = grad_OL / ctx.setting[-1]
        grad_O = grad_OL.sum(1)
        grad_hidden_OH = torch.zeros_like(hidden_OH, dtype=torch.float32)
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None  # None: it is frozen
        for columns, exp_OB, scale_O in _exponentials(ctx, hidden_OH, weight_VH, highest_O):
            x_OB = exp_OB.mul_((-grad_O * scale_O / sum_O)[:, None])
            own_OL, column_OL = _own_labels(labels_OL, columns)
            x_OB.scatter_add_(1, column_OL, torch.where(own_OL, grad_OL, 0.0))
            grad_OB = x_OB.to(weight_VH.dtype)
            if grad_weight_VH is not None:
                torch.mm(grad_OB.T, hidden_OH, out=grad_weight_VH[columns])
            if grad_OB.dtype == torch.float32:
                grad_hidden_OH.addmm_(grad_OB, weight_VH[columns])
            else:
                grad_hidden_OH += grad_OB @ weight_VH[columns]
        return grad_hidden_OH.to(hidden_OH.dtype), grad_weight_VH, *[None] * 6


def _blocks(
    hidden_OH: Tensor, weight_VH: Tensor, num_real: int, block: int, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """(rows of the weight, their fp32 logits / temperature [O, B]); the next block overwrites the last one's."""
    if len(hidden_OH) == 0:
        return
    buffer = hidden_OH.new_empty(len(hidden_OH) * min(block, num_real), dtype=torch.float32)
    for start in range(0, num_real, block):
        columns = slice(start, min(start + block, num_real))
        x_OB = buffer[: len(hidden_OH) * (columns.stop - start)].view(len(hidden_OH), -1)
        if weight_VH.dtype == torch.float32:
            torch.mm(hidden_OH, weight_VH[columns].T, out=x_OB)
        else:
            x_OB.copy_(hidden_OH @ weight_VH[columns].T)
        yield columns, x_OB if temperature == 1.0 else x_OB.div_(temperature)


def _exponentials(
    ctx: Any, hidden_OH: Tensor, weight_VH: Tensor, highest_O: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor | float]]:
    """Blocks of exp(x - M), for the backward pass to overwrite, as what the forward pass has kept or computed again:
    (rows of the weight, exponentials [O, B], what is to be multiplied into them)."""
    kept, ctx.kept = ctx.kept, None  # a second backward pass finds none
    if kept:
        columns, exp_OB, own_highest_O = kept
        yield columns, exp_OB, (own_highest_O - highest_O).exp()
        return
    for columns, x_OB in _blocks(hidden_OH, weight_VH, *ctx.setting):
        yield columns, x_OB.sub_(highest_O[:, None]).exp_(), 1.0


def _own_labels(labels_OL: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which labels lie in a block, and where in it (0 for the others)."""
    own_OL = (labels_OL >= columns.start) & (labels_OL < columns.stop)
    return own_OL, torch.where(own_OL, labels_OL - columns.start, 0)


def _rebased(sum_O: Tensor, moment_O: Tensor, old_O: Tensor, new_O: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of exp(x - M) and exp(x - M) (x - M), from M = old to a new one that is no lower; and the new one."""
    below_O = old_O - new_O
    scale_O = below_O.exp()
    return scale_O * sum_O, scale_O * (moment_O + below_O * sum_O), new_O
