"""A process without a GPU that answers torch.cuda's questions as an H100 would: enough to build, load and checkpoint
TransformerEngine's layers with Megatron's and TransformerEngine's own Python. `play` comes before Megatron is imported.

actor/cpu.py says where tensors lie and what a stream is; the rest is here. What the layers would compute: layers.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

CAPABILITY = (9, 0)
"""An H100's."""


def play() -> None:
    """For this process and those that it forks. `Topology.device` is cuda: every branch for CUDA is taken."""
    torch.cuda.is_available = lambda: True  # else Megatron does not see TransformerEngine (actor/__init__.py)
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    from megatron_nft.actor import cpu

    ours = DistributedOptimizer._set_main_param_and_optimizer_states, DistributedOptimizer.sharded_state_dict
    torch.cuda.is_available = lambda: False
    cpu.adapt_to_cpu()
    # What adapt_to_cpu puts there is for torch's AdamW; here it is TransformerEngine's.
    DistributedOptimizer._set_main_param_and_optimizer_states, DistributedOptimizer.sharded_state_dict = ours
    _answer_as_an_h100(cpu._NoStream)
    _gloo_for_nccl()


class Event:
    """Over as soon as it is recorded."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

    def record(self, *arguments: Any) -> None: ...

    def wait(self, *arguments: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


def _answer_as_an_h100(no_stream: type) -> None:
    class Stream(no_stream):
        cuda_stream, device = 0, torch.device("cpu")

        def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

        def record_event(self, *arguments: Any) -> Event:
            return Event()

        def __enter__(self) -> "Stream":
            return self

        def __exit__(self, *error: Any) -> None: ...

    cuda, stream = torch.cuda, Stream()
    properties = SimpleNamespace(
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        name="played H100",
        total_memory=80 << 30,
        multi_processor_count=132,
        uuid="GPU-played",
        L2_cache_size=50 << 20,
    )
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.device_count = lambda: 1
    cuda.get_device_capability = lambda device=None: CAPABILITY
    cuda.get_device_properties = lambda device=None: properties
    cuda.get_device_name = lambda device=None: properties.name
    cuda.set_device = cuda._lazy_init = lambda *device: None
    cuda.empty_cache = lambda: None
    cuda.memory_allocated = lambda device=None: 0
    cuda.Stream, cuda.Event = Stream, Event
    cuda.current_stream = cuda.default_stream = lambda device=None: stream


@contextmanager
def _one_by_one(*arguments: Any, **keywords: Any) -> Iterator[Any]:
    """In place of a coalesced collective: gloo's takes every tensor for one of the first one's format, so that bf16
    parameters behind FP8's bytes come out as bytes. NCCL's is a group of calls, each with its own format."""
    yield SimpleNamespace(wait=lambda: None)


def _gloo_for_nccl() -> None:
    import torch.distributed as dist
    from megatron.core.distributed import param_and_grad_buffer as buffers

    gather, scatter = buffers.dist_all_gather_func, buffers.dist_reduce_scatter_func
    buffers._coalescing_manager = _one_by_one
    buffers.dist_all_gather_func = lambda *tensors, **arguments: gather(*tensors, **(arguments | {"async_op": False}))
    buffers.dist_reduce_scatter_func = lambda *ts, **arguments: scatter(*ts, **(arguments | {"async_op": False}))
    init_process_group = dist.init_process_group
    dist.init_process_group = lambda backend=None, **arguments: init_process_group(backend="gloo", **arguments)
