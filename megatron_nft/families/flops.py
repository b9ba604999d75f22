"""Operations that a model's training takes: the count by which MFU is measured, here and by the planner.

Of an update's forward and backward pass, recomputation left out: 6 for each parameter of a layer's matrices and token;
causal attention's, where a token meets half of its sequence in the mean; and the logits, which are computed at answer
tokens only.
"""

from collections.abc import Iterable

from megatron_nft.families.family import HFConfig

FORWARD_AND_BACKWARD = 3
"""Times the forward pass: backward are two products for each."""


def training_flops(hf: HFConfig, sequences: Iterable[tuple[int, int]], *, is_frozen: bool = False) -> float:
    """Of one forward and backward pass.

    Args:
        sequences: tokens, and answer tokens among them, of each.
        is_frozen: the model's weights get no gradient, only adapters, whose own products are small: one product less.
    """
    layers, width = hf.num_hidden_layers, hf.num_attention_heads * hf.head_dim
    products = attention = 0.0
    for tokens, answer_tokens in sequences:
        products += 2 * layers * hf.layer_parameters * tokens + 2 * hf.hidden_size * hf.vocab_size * answer_tokens
        attention += 4 * layers * width * tokens**2 / 2
    return (FORWARD_AND_BACKWARD - is_frozen) * products + FORWARD_AND_BACKWARD * attention
