"""Number formats: what a recipe's `actor.precision` means to Megatron-Core, and which devices can do it.

Called by actor/model.py, actor/optimizer.py and actor/pipeline.py. FP8 stands for the products of the transformer
layers' linear modules, by TransformerEngine; embeddings, norms, attention and logits stay in bf16, and gradients,
master weights and Adam's moments are fp32 in every case.
"""

from dataclasses import dataclass
from typing import Any

import torch

from megatron_nft.config import ActorConfig


class PrecisionError(RuntimeError):
    """This device cannot compute in the format that the recipe asks for."""


@dataclass(frozen=True)
class Precision:
    """A number format of parameters and activations."""

    dtype: torch.dtype
    fp8_recipe: str | None = None  # Megatron's name
    fp8_format: str | None = None  # "hybrid": E4M3 forward, E5M2 for gradients; "e4m3": both in E4M3, scaled by blocks
    least_capability: tuple[int, int] = (0, 0)  # of the CUDA device
    token_multiple: int = 1  # tokens of a product must be a multiple (Megatron's fp8_utils.get_fp8_align_size)

    @property
    def is_bf16(self) -> bool:
        return self.dtype == torch.bfloat16

    def megatron_arguments(self, actor: ActorConfig) -> dict[str, Any]:
        """Of TransformerConfig."""
        arguments: dict[str, Any] = {
            "bf16": self.is_bf16,
            "params_dtype": self.dtype,
            "pipeline_dtype": self.dtype,
            "attention_softmax_in_fp32": True,
        }
        if self.fp8_recipe is not None:
            first, last = actor.num_layers_at_start_in_bf16, actor.num_layers_at_end_in_bf16
            arguments |= {
                "fp8": self.fp8_format,
                "fp8_recipe": self.fp8_recipe,
                "first_last_layers_bf16": bool(first or last),
                "num_layers_at_start_in_bf16": first,
                "num_layers_at_end_in_bf16": last,
                "fp8_param": actor.fp8_param,
            }
        return arguments


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "bf16": Precision(torch.bfloat16),
    "fp8-delayed": Precision(torch.bfloat16, "delayed", "hybrid", (8, 9), 16),
    "fp8-tensorwise": Precision(torch.bfloat16, "tensorwise", "hybrid", (8, 9), 16),
    "fp8-blockwise": Precision(torch.bfloat16, "blockwise", "e4m3", (9, 0), 16),
    "fp8-mxfp8": Precision(torch.bfloat16, "mxfp8", "e4m3", (10, 0), 32),
}


def check_device(precision: str, capability: tuple[int, int], device_name: str) -> None:
    """Checks a format against a CUDA device.

    Args:
        precision: a key of PRECISIONS.
        capability: the device's compute capability, torch.cuda.get_device_capability().

    Raises:
        PrecisionError: with what the device can do.
    """
    least = PRECISIONS[precision].least_capability
    if capability < least:
        able = [name for name, fmt in PRECISIONS.items() if fmt.least_capability <= capability]
        raise PrecisionError(
            f"actor.precision = {precision!r} needs compute capability {least[0]}.{least[1]}, {device_name} has "
            f"{capability[0]}.{capability[1]}; it can do {', '.join(able)}"
        )
