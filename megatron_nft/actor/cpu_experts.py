"""Megatron's experts on a CPU: what they need of CUDA, of TransformerEngine and of NCCL, and gloo doesn't have.

Adapted to megatron-core 0.16.1 and 0.19.2; to be removed where these run experts over gloo by themselves. Called by
actor/cpu.py.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def adapt_experts_to_cpu() -> None:
    """Before a model with experts is built; changes nothing for others."""
    _let_routers_do_without_transformer_engine()
    _count_tokens_in_numbers()
    _let_gloo_gather_unequal_shares()


def _let_routers_do_without_transformer_engine() -> None:
    """megatron-core 0.16.1 asks for a name that only the import of TransformerEngine defines."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def _count_tokens_in_numbers() -> None:
    """all_to_all_single wants numbers, and Megatron makes them only of what comes from a GPU."""
    from megatron.core.transformer.moe import token_dispatcher

    move = token_dispatcher.maybe_move_tensor_to_cpu

    def move_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        tensor = move(tensor, as_numpy, record_stream)
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    token_dispatcher.maybe_move_tensor_to_cpu = move_to_cpu


def _let_gloo_gather_unequal_shares() -> None:
    """Experts that are cut over ranks (etp > 1) gather unequal numbers of tokens; gloo takes equal ones only."""
    from megatron.core.tensor_parallel import mappings

    gather, scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather_any(input_: Tensor, group: Any, output_split_sizes: Any = None, *rest: Any, **named: Any) -> Tensor:
        if output_split_sizes is None or group.size() == 1:
            return gather(input_, group, output_split_sizes, *rest, **named)
        sizes = [int(size) for size in output_split_sizes]
        padded = input_.new_zeros(max(sizes), *input_.shape[1:])
        padded[: len(input_)] = input_
        shares = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(shares, padded, group=group)
        return torch.cat([share[:size] for share, size in zip(shares, sizes, strict=True)])

    def scatter_any(input_: Tensor, group: Any, input_split_sizes: Any = None, *rest: Any, **named: Any) -> Tensor:
        if input_split_sizes is None or group.size() == 1:
            return scatter(input_, group, input_split_sizes, *rest, **named)
        total = input_.clone()
        dist.all_reduce(total, group=group)
        return total.split([int(size) for size in input_split_sizes])[group.rank()].contiguous()

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather_any, scatter_any
