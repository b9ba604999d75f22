"""TransformerEngine's FP8 casts on a CPU: what they store is what the kernels would, up to rounding."""

from typing import Any

import torch
from torch import Tensor

LARGEST = 448.0
"""Of E4M3."""
BLOCK = 128


def play() -> None:
    from transformer_engine.pytorch.tensor import float8_blockwise_tensor, float8_tensor
    from transformer_engine.pytorch.tensor.storage import float8_blockwise_tensor_storage, float8_tensor_storage

    kernels = _Kernels()
    for module in (float8_blockwise_tensor, float8_tensor, float8_blockwise_tensor_storage, float8_tensor_storage):
        module.tex = kernels
    for function in (
        float8_tensor_storage._FromFloat8Func,
        float8_blockwise_tensor_storage._FromFloat8BlockwiseFunc,
    ):
        function.forward = staticmethod(lambda context, tensor, dtype: _dequantize(tensor).to(dtype or torch.bfloat16))


class _Kernels:
    """transformer_engine_torch, but for two of its functions."""

    def __getattr__(self, name: str) -> Any:
        import transformer_engine_torch

        return {"quantize": _quantize, "dequantize": _dequantize}.get(name) or getattr(transformer_engine_torch, name)


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
