"""TransformerEngine's layers, computed on a CPU by their documented meaning: parameters, marks, extra state and the
calls that Megatron makes of them stay the real ones, and their own assertions about packed sequences are kept.

In place of kernels: LayerNormLinear, Linear, RMSNorm, DotProductAttention, rotary embeddings, FusedAdam, norms and
scales of many tensors at once. Tensor-parallel messages go by Megatron's own mappings.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CALLS: dict[str, Any] = {}
"""What Megatron handed to the last call of a layer, for tests to look at."""
NOISE = 0.0
"""Relative, of attention's outputs: another one at each call, whatever a checkpoint says of random states."""
CHANCE = torch.Generator()


def play() -> None:
    import transformer_engine.pytorch as te
    from megatron.core.models.common.embeddings import rope_utils
    from transformer_engine.pytorch.attention import DotProductAttention
    from transformer_engine.pytorch.quantization import RecipeState

    te.LayerNormLinear.forward, te.Linear.forward = _norm_linear, _linear
    te.RMSNorm.forward = lambda self, hidden: _rms_norm(hidden, self.weight, self.eps)
    DotProductAttention.forward = _attention
    rope_utils.fused_apply_rotary_pos_emb_thd = _rotary
    create = RecipeState.create
    on_the_cpu = {"device": torch.device("cpu")}
    RecipeState.create = staticmethod(lambda recipe, **arguments: create(recipe, **{**arguments, **on_the_cpu}))
    _play_optimizer()


# --- Linear layers ---------------------------------------------------------------------------------------------------


def _rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(hidden.float(), hidden.shape[-1:], None, eps).to(hidden.dtype) * weight


def _product(layer: Any, hidden: Tensor) -> Tensor:
    from transformer_engine.pytorch import QuantizedTensor
    from transformer_engine.pytorch.utils import assert_dim_for_fp8_exec

    weight = layer.weight
    if _start_fp8(layer):
        assert_dim_for_fp8_exec(hidden.reshape(-1, hidden.shape[-1]), weight)
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize()
    has_bias = layer.bias is not None and layer.bias.numel() and layer.apply_bias
    return F.linear(hidden, weight, layer.bias if has_bias else None)


def _start_fp8(layer: Any) -> bool:
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager

    if not FP8GlobalStateManager.is_fp8_enabled():
        return False
    layer.init_fp8_metadata(num_gemms=1)
    return True


def _norm_linear(self: Any, hidden: Tensor, is_first_microbatch: bool | None = None, fp8_output: bool = False) -> Any:
    from megatron.core import tensor_parallel

    hidden = normed = _rms_norm(hidden, self.layer_norm_weight, self.eps)
    if self.tp_size > 1:
        bring = (
            tensor_parallel.gather_from_sequence_parallel_region
            if self.sequence_parallel
            else tensor_parallel.copy_to_tensor_model_parallel_region
        )
        hidden = bring(hidden, group=self.tp_group)
    CALLS.setdefault("is_first_microbatch", set()).add(is_first_microbatch)
    out = _product(self, hidden)
    found = (out, *([self.bias] if self.return_bias else []))
    if self.return_layernorm_output:
        found += (hidden if self.return_layernorm_output_gathered else normed,)
    return found if len(found) > 1 else out


def _linear(
    self: Any,
    hidden: Tensor,
    is_first_microbatch: bool | None = None,
    fp8_output: bool = False,
    fp8_grad: bool = False,
) -> Any:
    from megatron.core import tensor_parallel

    out = _product(self, hidden)
    if self.tp_size > 1 and self.parallel_mode == "row":
        add_up = (
            tensor_parallel.reduce_scatter_to_sequence_parallel_region
            if self.sequence_parallel
            else tensor_parallel.reduce_from_tensor_model_parallel_region
        )
        out = add_up(out, group=self.tp_group)
    return (out, self.bias) if self.return_bias else out


# --- Attention -------------------------------------------------------------------------------------------------------


def _positions(length: int, rank: int, size: int) -> Tensor:
    """Of a rank's tokens of a sequence: pieces `rank` and 2 size - 1 - rank of 2 size (TransformerEngine's
    context_parallel.py), end to end."""
    piece = length // (2 * size)
    first, second = rank * piece, (2 * size - 1 - rank) * piece
    if size == 1:
        return torch.arange(length)
    return torch.cat([torch.arange(first, first + piece), torch.arange(second, second + piece)])


def _attention(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    qkv_format: str | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_kv: int | None = None,
    attn_mask_type: str | None = None,
    **others: Any,
) -> Tensor:
    group = self.cp_group
    rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
    bounds = cu_seqlens_q.tolist()
    # As in dot_product_attention.py, for qkv_format "thd":
    assert qkv_format == "thd" and all(x.dim() == 3 for x in (query, key, value)) and "padding" in attn_mask_type
    assert cu_seqlens_q.dtype == cu_seqlens_kv.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_kv)
    assert query.dtype == key.dtype == value.dtype and key.shape[-2] == self.num_gqa_groups_per_partition
    assert type(max_seqlen_q) is int and max_seqlen_q >= max(end - start for start, end in pairwise(bounds))
    assert not {name: value for name, value in others.items() if value is not None}, others
    # Beyond the last bound nothing is computed, and in each sequence the ranks have equal pieces:
    assert bounds[-1] == len(query) * size
    assert size == 1 or all((end - start) % (2 * size) == 0 for start, end in pairwise(bounds))
    CALLS["attention"] = {"mask": attn_mask_type, "scale": self.softmax_scale}
    keys, values = _of_all_ranks(torch.stack([key, value]), group, size)
    outputs = []
    for start, end in pairwise(bounds):
        mine = slice(start // size, end // size)
        places = torch.cat([_positions(end - start, other, size) for other in range(size)])
        order = places.argsort()
        mask = torch.arange(end - start) <= _positions(end - start, rank, size)[:, None]
        q = query[mine]
        k, v = (torch.cat([part[mine] for part in parts])[order] for parts in (keys, values))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True, scale=self.softmax_scale)
        outputs.append(out[0].transpose(0, 1))
    joined = torch.cat(outputs).reshape(len(query), -1)
    return joined * (1 + NOISE * torch.randn(joined.shape, generator=CHANCE)).to(joined.dtype) if NOISE else joined


def _of_all_ranks(both: Tensor, group: Any, size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Every rank's keys, and every rank's values."""
    if size == 1:
        return (both[0],), (both[1],)
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    gathered = gather_from_sequence_parallel_region(both.transpose(0, 1).contiguous(), group=group)
    keys, values = gathered.unbind(1)
    return keys.chunk(size), values.chunk(size)


def _rotary(
    tensor: Tensor, cu_seqlens: Tensor, frequencies: Tensor, cp_size: int = 1, cp_rank: int = 0, **others: Any
) -> Tensor:
    bounds = cu_seqlens.tolist()
    positions = torch.cat([_positions(end - start, cp_rank, cp_size) for start, end in pairwise(bounds)])
    angles = frequencies[positions][:, 0].float()  # [T, 1, d]
    x = tensor.float()
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * angles.cos() + turned * angles.sin()).to(tensor.dtype)


# --- Optimizer -------------------------------------------------------------------------------------------------------


def _play_optimizer() -> None:
    from megatron.core.optimizer import clip_grads
    from transformer_engine.pytorch.optimizers import FusedAdam

    FusedAdam.step = _adam_step
    clip_grads.multi_tensor_applier = lambda kernel, overflow, tensors, *rest: kernel(2048, overflow, tensors, *rest)
    clip_grads.l2_norm_impl = _norm
    clip_grads.multi_tensor_scale_impl = clip_grads.multi_tensor_scale_tensor_impl = _scale


def _norm(chunk: int, overflow: Tensor, tensors: list[list[Tensor]], per_tensor: bool = False) -> tuple[Tensor, None]:
    """A tensor of one number, as the kernel returns it."""
    return torch.linalg.vector_norm(torch.cat([x.float().flatten() for x in tensors[0]])).reshape(1), None


def _scale(chunk: int, overflow: Tensor, tensors: list[list[Tensor]], factor: Tensor | float) -> None:
    for source, target in zip(*tensors, strict=True):
        target.copy_(source * factor)


def _adam_step(self: Any, closure: Any = None, grad_scaler: Any = None) -> None:
    for group in self.param_groups:
        if not group["params"]:
            continue
        group["step"] = step = group.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            gradient = getattr(parameter, "decoupled_grad", None) if self.use_decoupled_grad else parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if not state:
                self.initialize_state(parameter, store_param_remainders=False)
            first, second = state["exp_avg"], state["exp_avg_sq"]
            first.mul_(beta1).add_(gradient, alpha=1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            change = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + group["eps"])
            parameter.data.add_(change + group["weight_decay"] * parameter.data, alpha=-group["lr"])
