"""What a CPU's Megatron does otherwise, so that it takes seconds and not minutes."""

import pytest
import torch
from megatron.core.tensor_parallel.layers import LinearWithFrozenWeight
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_nft.actor.cpu import _take_gradients_of_frozen_layers_as_rows


class Called(TorchDispatchMode):
    """Names of all that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_frozen_layers_gradient_is_one_product_whatever_its_strides(monkeypatch, batch):
    monkeypatch.setattr(LinearWithFrozenWeight, "backward", staticmethod(LinearWithFrozenWeight.backward))
    _take_gradients_of_frozen_layers_as_rows()
    hidden_TBH, weight_OH = torch.randn(5, batch, 8, requires_grad=True), torch.randn(6, 8)
    output_TBO = LinearWithFrozenWeight.apply(hidden_TBH, weight_OH, None, False, None)
    grad_TBO = torch.randn(batch, 5, 6).transpose(0, 1)
    with Called() as called:
        output_TBO.backward(grad_TBO)
    assert "aten.mm.default" in called.names and "aten.bmm.default" not in called.names, called.names
    torch.testing.assert_close(hidden_TBH.grad, grad_TBO @ weight_OH)
