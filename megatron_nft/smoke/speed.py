"""How fast a step is, and how fast it could be: operations of a batch, those that the device does in plain products."""

import time
from collections.abc import Sequence

import torch

from megatron_nft.families.flops import training_flops
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.types import TrainSequence


def model_flops(hf: HFConfig, sequences: Sequence[TrainSequence]) -> float:
    """Of forward and backward, as a run's MFU counts them."""
    return training_flops(hf, ((s.num_tokens, s.num_answer_tokens) for s in sequences))


def product_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, in the parameters' format (so FP8 may pass 100%)."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
