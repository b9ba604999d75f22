"""TransformerEngine's FP8 casts on a CPU: what they store is what the kernels would, up to rounding."""

from typing import Any

import torch
from torch import Tensor

LARGEST = 448.0
"""Of E4M3."""
BLOCK = 128


def play() -> None:
    from transformer_engine.pytorch.tensor import float8_blockwise_tensor, float8_tensor, utils
    from transformer_engine.pytorch.tensor.storage import float8_blockwise_tensor_storage, float8_tensor_storage

    kernels = _Kernels()
    for module in (
        float8_blockwise_tensor,
        float8_tensor,
        float8_blockwise_tensor_storage,
        float8_tensor_storage,
        utils,
    ):
        module.tex = kernels
    utils.multi_tensor_applier = lambda kernel, overflow, tensors, *rest: kernel(*tensors, *rest)
    utils.multi_tensor_scale = _scale
    utils.multi_tensor_compute_scale_and_scale_inv = _compute_scales
    for function in (
        float8_tensor_storage._FromFloat8Func,
        float8_blockwise_tensor_storage._FromFloat8BlockwiseFunc,
    ):
        function.forward = staticmethod(lambda context, tensor, dtype: _dequantize(tensor).to(dtype or torch.bfloat16))


class _Kernels:
    """transformer_engine_torch, but for these functions."""

    def __getattr__(self, name: str) -> Any:
        import transformer_engine_torch

        return PLAYED.get(name) or getattr(transformer_engine_torch, name)


def _quantize(source: Tensor, quantizer: Any, out: Any = None, noop: Any = None) -> Any:
    from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockQuantizer
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Quantizer, Float8Tensor

    source = source.detach().float()
    if isinstance(quantizer, Float8BlockQuantizer):
        out = quantizer.make_empty(source.shape, dtype=torch.bfloat16, device=source.device) if out is None else out
        _fill_blocks(source, out._rowwise_data, out._rowwise_scale_inv)
        if out._columnwise_data is not None:
            _fill_blocks(source.T.contiguous(), out._columnwise_data, out._columnwise_scale_inv)
        return out
    is_delayed = isinstance(quantizer, Float8Quantizer)
    scale = quantizer.scale.float().reshape(1) if is_delayed else _scale_to_largest(source)
    if is_delayed and quantizer.amax.numel():
        quantizer.amax.copy_(source.abs().max())
    data = _to_bytes(source * scale)
    if out is None:
        return Float8Tensor(
            shape=data.shape,
            dtype=torch.bfloat16,
            data=data,
            fp8_scale_inv=1 / scale,
            fp8_dtype=quantizer.dtype,
            requires_grad=False,
            data_transpose=None,
            quantizer=quantizer,
            device=data.device,
        )
    out._data.copy_(data)
    out._scale_inv.copy_((1 / scale).view_as(out._scale_inv))
    out._transpose_invalid = True
    return out


def _fill_blocks(source: Tensor, data: Tensor, scale_inv: Tensor) -> None:
    for row in range(0, source.shape[0], BLOCK):
        for column in range(0, source.shape[1], BLOCK):
            block = source[row : row + BLOCK, column : column + BLOCK]
            scale = _scale_to_largest(block)
            data[row : row + BLOCK, column : column + BLOCK] = _to_bytes(block * scale)
            scale_inv[row // BLOCK, column // BLOCK] = 1 / scale


def _scale_to_largest(source: Tensor) -> Tensor:
    return (LARGEST / source.abs().max().clamp_min(1e-12)).reshape(1)


def _to_bytes(scaled: Tensor) -> Tensor:
    return scaled.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)


def _dequantize(tensor: Any, *arguments: Any) -> Tensor:
    from transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage import Float8BlockwiseQTensorStorage

    if not isinstance(tensor, Float8BlockwiseQTensorStorage):
        return (tensor._data.view(torch.float8_e4m3fn).float() * tensor._scale_inv.float()).bfloat16()
    numbers = tensor._rowwise_data.view(torch.float8_e4m3fn).float()
    scales = tensor._rowwise_scale_inv.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return (numbers * scales[: numbers.shape[0], : numbers.shape[1]]).bfloat16()


# --- Master weights, a shard of each, into FP8 parameters ------------------------------------------------------------


def _scale(sources: list[Tensor], targets: list[Tensor], factor: float) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source * factor)


def _compute_scales(
    largest: list[Tensor], scales: list[Tensor], inverses: list[Tensor], most: float, powers_of_2: bool, epsilon: float
) -> None:
    for seen, scale, inverse in zip(largest, scales, inverses, strict=True):
        scale.copy_(most / seen.clamp_min(max(epsilon, 1e-12)))
        if powers_of_2:
            scale.copy_(torch.exp2(torch.floor(torch.log2(scale))))
        inverse.copy_(1 / scale)


def _compute_amax(source: Tensor, out: Tensor) -> None:
    out.copy_(source.abs().max())


def _blocks_of(start: int, length: int, height: int, width: int, columns: int) -> Tensor:
    """Of a fragment's numbers: their place in a flat table of blocks with so many columns."""
    places = torch.arange(start, start + length)
    return places // width // BLOCK * columns + places % width // BLOCK


def _partial_amax(source: Tensor, out: Tensor, height: int, width: int, start: int, block: int) -> None:
    blocks = _blocks_of(start, source.numel(), height, width, out.shape[1])
    out.view(-1).scatter_reduce_(0, blocks, source.detach().float().abs().flatten(), "amax")


def _partial_cast(
    source: Tensor, out: Tensor, scale: Tensor, height: int, width: int, start: int, block: int, dtype: Any
) -> None:
    blocks = _blocks_of(start, source.numel(), height, width, scale.shape[1])
    out.copy_(_to_bytes(source.detach().float().flatten() * scale.reshape(-1)[blocks]))


def _transpose(data: Tensor, dtype: Any, out: Tensor | None = None) -> Tensor:
    turned = data.reshape(-1, data.shape[-1]).T.contiguous()
    return turned if out is None else out.copy_(turned)


PLAYED = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "compute_amax": _compute_amax,
    "fp8_block_scaling_compute_partial_amax": _partial_amax,
    "fp8_block_scaling_partial_cast": _partial_cast,
    "fp8_transpose": _transpose,
}
"""In place of the functions of these names."""
