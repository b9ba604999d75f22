"""What adapts Megatron-Core to a machine without CUDA; cpu_experts.py does the same for a mixture's experts.

Megatron-Core asks torch.cuda for its device, its streams and its random state, and allocates with device="cuda".
`adapt_to_cpu` answers these questions for the CPU; everything above it (schedules, distributed optimizer, tensor
parallel layers) is Megatron's own code. Called once per process by actor/topology.py, before any model is built.

In the GPU's environment TransformerEngine is hidden first: Megatron takes its kernels for norms of gradients and for
Adam wherever it can import them, and does so when it is imported itself (actor/__init__.py).

Adapted to megatron-core 0.16.1 and 0.19.2. To be removed when Megatron-Core takes its device from one place.
"""

import sys
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_nft.actor.cpu_experts import adapt_experts_to_cpu

_mode: "_CudaMeansCpu | None" = None


def hide_transformer_engine_without_cuda() -> None:
    """Before Megatron is imported."""
    if not torch.cuda.is_available():
        sys.modules["transformer_engine"] = None  # an import of it raises ImportError, as if it weren't installed


def adapt_to_cpu() -> None:
    """Lets Megatron-Core run on the CPU in this process. Safe to call twice."""
    global _mode
    if _mode is not None:
        return
    if torch.cuda.is_available():
        raise RuntimeError(
            "cluster.device = cpu on a machine with CUDA devices; hide them with CUDA_VISIBLE_DEVICES=''"
        )
    _replace_cuda_functions()
    _replace_megatron_random_state()
    _let_torch_adamw_load()
    _leave_the_models_alone()
    _take_gradients_of_frozen_layers_as_rows()
    adapt_experts_to_cpu()
    _mode = _CudaMeansCpu()
    _mode.__enter__()


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites requests for a CUDA tensor to the CPU, in every torch function and tensor method."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The distributed optimizer sorts parameters by the strings "torch.cuda.FloatTensor" and its like.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if _names_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": "cpu"}
        if func is torch.Tensor.to and any(_names_cuda(arg) for arg in args):
            args = tuple("cpu" if _names_cuda(arg) else arg for arg in args)
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)


def _names_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _NoStream:
    """A CPU runs in order: waiting for it is doing nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

    def record_event(self, event: Any = None) -> "_NoStream":
        return self

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...


@contextmanager
def _no_stream_context(stream: Any):
    yield


def _replace_cuda_functions() -> None:
    cuda, cpu, stream = torch.cuda, torch.device("cpu"), _NoStream()
    cuda.current_device = lambda: cpu
    cuda.synchronize = lambda device=None: None
    cuda.current_stream = cuda.default_stream = lambda device=None: stream
    cuda.stream = _no_stream_context
    cuda.Stream = _NoStream  # a class, for annotations such as `torch.cuda.Stream | None`
    cuda.manual_seed = torch.default_generator.manual_seed  # torch.manual_seed itself asks torch.cuda again
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.FloatTensor, cuda.HalfTensor, cuda.BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor


def _replace_megatron_random_state() -> None:
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda new_state, *args, **kwargs: torch.set_rng_state(new_state)


def _let_torch_adamw_load() -> None:
    """Megatron's loader of optimizer checkpoints, for torch's AdamW: TransformerEngine's and Apex's aren't there.

    Those keep one step count in the parameter group. torch keeps one in every parameter's state, which does not exist
    before the first update; Megatron's loader asks for it, then gives all states one shared tensor, which each
    parameter's update would count up, and later misses the key "step".
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    set_states, sharded_state_dict = (
        DistributedOptimizer._set_main_param_and_optimizer_states,
        DistributedOptimizer.sharded_state_dict,
    )

    def set_states_and_step(self: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        state["step"] = state["step"].clone()
        set_states(self, model_param, {**tensors, "step": state["step"]})

    def sharded_state_dict_of_any_age(self: Any, model: Any, is_loading: bool = False, **arguments: Any) -> Any:
        if is_loading and not self.optimizer.state:
            self._init_optimizer_states_with_dummy_values()
        return sharded_state_dict(self, model, is_loading, **arguments)

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states_and_step
    DistributedOptimizer.sharded_state_dict = sharded_state_dict_of_any_age


def _leave_the_models_alone() -> None:
    """No mode inside a model's forward and backward pass: nothing there asks for CUDA, and it looks at every call."""
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.pipeline_parallel import schedules

    forward, backward_step = DistributedDataParallel.forward, schedules.backward_step

    def plain_forward(*arguments: Any, **keywords: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return forward(*arguments, **keywords)

    def plain_backward_step(*arguments: Any, **keywords: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return backward_step(*arguments, **keywords)

    DistributedDataParallel.forward, schedules.backward_step = plain_forward, plain_backward_step


def _take_gradients_of_frozen_layers_as_rows() -> None:
    """To torch's matmul a gradient [T, 1, H] with a transpose's strides is T matrices of a row, for a frozen weight:
    on a CPU it then copies the weight T times (7.5 s for [512, 4864] x [4864, 896] in bf16, which take 0.02)."""
    from megatron.core.tensor_parallel.layers import LinearWithFrozenWeight

    backward = LinearWithFrozenWeight.backward

    def backward_of_rows(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return backward(ctx, grad_output.flatten().view(grad_output.shape))

    LinearWithFrozenWeight.backward = staticmethod(backward_of_rows)
