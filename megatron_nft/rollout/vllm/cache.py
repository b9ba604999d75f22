"""Whether a KV cache of the size that a recipe gives can be made, and holds one sequence: vLLM says so at its start."""

from math import ceil
from typing import Any


def cache_problem(arguments: dict[str, Any], device: str) -> str | None:
    """What is against it, in a line; None: nothing. In a process that may import vllm.

    Args:
        arguments: vLLM's EngineArgs.
    """
    from vllm.config import CacheConfig
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size, blocks = arguments.get("block_size"), arguments.get("num_gpu_blocks_override")
    if size is not None and size < 1:
        return f"block_size: {size} tokens; give 1 or more, or leave it out"
    if size is not None and device == "cpu" and not CPUAttentionBackend.supports_block_size(size):
        bases = [getattr(each, "base", each) for each in CPUAttentionBackend.get_supported_kernel_block_sizes()]
        return f"block_size: {size} tokens; vLLM's attention on a CPU takes multiples of {', '.join(map(str, bases))}"
    longest, size = arguments["max_model_len"], size or CacheConfig.DEFAULT_BLOCK_SIZE
    needed = ceil(longest / size) + 1  # vLLM keeps one for itself
    if blocks is not None and blocks < needed:
        return (
            f"num_gpu_blocks_override: {blocks} blocks of {size} tokens; a sequence may have {longest}, so give "
            f"{needed} or more, or leave it out"
        )
    return None
