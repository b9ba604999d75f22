"""Log-probs of the labels, and entropy, from vocab-parallel logits. Called by actor/pipeline.py on the last stage."""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor


def label_logprobs(logits_AV: Tensor, labels_A: Tensor, *, temperature: float, vocab_size: int) -> Tensor:
    """log softmax(logits / temperature)[label], fp32, for this rank's slice of the vocabulary.

    A collective of the tensor-parallel group; every rank of it gets all log-probs.

    Args:
        logits_AV: [A, padded vocabulary / tp], any float format.
        labels_A: int64 [A], ids in the whole vocabulary.
        vocab_size: ids from here on are padding and get no probability.
    """
    scaled_AV = _scaled(logits_AV, temperature, vocab_size)
    # Megatron takes [tokens, batch, vocabulary].
    return -vocab_parallel_cross_entropy(scaled_AV[:, None], labels_A[:, None])[:, 0]


@torch.no_grad()
def token_entropy(logits_AV: Tensor, *, temperature: float, vocab_size: int) -> Tensor:
    """Entropy of softmax(logits / temperature) in nats, fp32 [A]; arguments as for `label_logprobs`.

    A collective of the tensor-parallel group. H = log Z - E[logit], with logits shifted by their maximum.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    scaled_AV = _scaled(logits_AV, temperature, vocab_size)
    highest_A = scaled_AV.amax(-1)
    dist.all_reduce(highest_A, op=dist.ReduceOp.MAX, group=group)
    shifted_AV = scaled_AV - highest_A[:, None]
    weights_AV = shifted_AV.exp()
    # Where the weight is 0 the logit may be -inf, and has no say.
    sums_2A = torch.stack([weights_AV.sum(-1), torch.where(weights_AV > 0, weights_AV * shifted_AV, 0.0).sum(-1)])
    dist.all_reduce(sums_2A, group=group)
    return sums_2A[0].log() - sums_2A[1] / sums_2A[0]


def _scaled(logits_AV: Tensor, temperature: float, vocab_size: int) -> Tensor:
    """fp32 logits / temperature, with the padding of the vocabulary out of the way."""
    logits_AV = logits_AV.float() / temperature
    slice_size = logits_AV.shape[-1]
    first_id = parallel_state.get_tensor_model_parallel_rank() * slice_size
    if first_id + slice_size > vocab_size:
        is_padding = torch.arange(first_id, first_id + slice_size, device=logits_AV.device) >= vocab_size
        logits_AV = logits_AV.masked_fill(is_padding, torch.finfo(torch.float32).min)
    return logits_AV
