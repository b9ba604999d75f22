"""Number formats: what a recipe's `actor.precision` means to Megatron-Core. Called by actor/model.py and
optimizer.py."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """Parameters and activations are in `dtype`; gradients, master weights and Adam's moments are fp32 in either
    case."""

    dtype: torch.dtype

    @property
    def is_bf16(self) -> bool:
        return self.dtype == torch.bfloat16


PRECISIONS = {"fp32": Precision(torch.float32), "bf16": Precision(torch.bfloat16)}
