"""Operations that a model's training takes: the count by which MFU is measured, here and by the planner.

Of an update's forward and backward pass, recomputation left out: 6 for each parameter of a layer's matrices and token;
causal attention's, where a token meets half of its sequence in the mean; and the logits, which are computed at answer
tokens only.
"""

from collections.abc import Iterable

from megatron_nft.families.family import HFConfig

FORWARD_AND_BACKWARD = 3
"""Times the forward pass: backward are two products for each."""


def training_flops(hf: HFConfig, sequences: Iterable[tuple[int, int]]) -> float:
    """Of one forward and backward pass.

    Args:
        sequences: tokens, and answer tokens among them, of each.
    """
    layers, width = hf.num_hidden_layers, hf.num_attention_heads * hf.head_dim
    forward = 0.0
    for tokens, answer_tokens in sequences:
        forward += 2 * layers * hf.layer_parameters * tokens
        forward += 4 * layers * width * tokens**2 / 2
        forward += 2 * hf.hidden_size * hf.vocab_size * answer_tokens
    return FORWARD_AND_BACKWARD * forward
