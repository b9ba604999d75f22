"""Whether a KV cache of the size that a recipe gives can be made, and holds one sequence: vLLM says so at its start."""

from math import ceil
from typing import Any


def cache_problem(arguments: dict[str, Any], device: str) -> str | None:
    """What is against it, in a line; None: nothing. In a process that may import vllm.

    Args:
        arguments: vLLM's EngineArgs.
    """
    size, blocks = arguments.get("block_size"), arguments.get("num_gpu_blocks_override")
    if size is not None and size < 1:
        return f"block_size: {size} tokens; give 1 or more, or leave it out"
    if size is not None and device == "cpu":
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        if not CPUAttentionBackend.supports_block_size(size):
            sizes = [getattr(each, "base", each) for each in CPUAttentionBackend.get_supported_kernel_block_sizes()]
            return f"block_size: {size} tokens; vLLM's CPU attention takes multiples of {', '.join(map(str, sizes))}"
    longest, workers = arguments["max_model_len"], arguments.get("decode_context_parallel_size") or 1
    needed = 1 if size is None else ceil(ceil(longest / size) / workers)  # without a size: as vLLM chooses on a GPU
    if blocks is not None and blocks < needed + 1:  # vLLM keeps one for itself
        of = "" if size is None else f" of {size} tokens"
        return (
            f"num_gpu_blocks_override: {blocks} blocks{of}; a sequence may have {longest}, so give {needed + 1} or "
            "more, or leave it out"
        )
    return None
