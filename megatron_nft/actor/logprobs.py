"""Log-probs of the labels from vocab-parallel logits. Called by actor/pipeline.py on the last pipeline stage."""

import torch
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
    logits_AV = logits_AV.float() / temperature
    slice_size = logits_AV.shape[-1]
    first_id = parallel_state.get_tensor_model_parallel_rank() * slice_size
    if first_id + slice_size > vocab_size:
        is_padding = torch.arange(first_id, first_id + slice_size, device=logits_AV.device) >= vocab_size
        logits_AV = logits_AV.masked_fill(is_padding, torch.finfo(torch.float32).min)
    # Megatron takes [tokens, batch, vocabulary].
    return -vocab_parallel_cross_entropy(logits_AV[:, None], labels_A[:, None])[:, 0]
