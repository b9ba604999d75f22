"""Colocated: what Megatron has cached is the driver's again when engines wake, not only what its tensors took."""

from types import SimpleNamespace

import pytest

from tests.parallel.ranks import run_ranks


def hand_over(rank, master, on_host):
    """What happens, in order: Turns' and Worker's own steps with Megatron's own functions, on a GPU that says so."""
    import torch
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer.optimizer import MegatronOptimizer

    from megatron_nft.actor.worker import Worker
    from megatron_nft.cluster.turns import Turns

    log = []
    torch.cuda.empty_cache = lambda: log.append("the cache is given back")

    class OnGpu(torch.Tensor):
        is_cuda = True

        def cpu(self):
            log.append("the optimizer's state goes to the host")

    class Chunk:
        offload_grad_buffers = DistributedDataParallel.offload_grad_buffers

        def __init__(self):
            self.buffers = [SimpleNamespace(offload_to_cpu=lambda **what: log.append("gradients are dropped"))]
            self.expert_parallel_buffers = []

    class Optimizer:
        offload_to_cpu = MegatronOptimizer.offload_to_cpu

        def __init__(self):
            state = {0: {"exp_avg": torch.zeros(1).as_subclass(OnGpu)}}
            self.optimizer = SimpleNamespace(param_groups=[], state=state)

    config = SimpleNamespace(optimizer=SimpleNamespace(optimizer_cpu_offload=on_host))
    worker = SimpleNamespace(model=[Chunk()], optimizer=Optimizer(), config=config)
    actor = SimpleNamespace(offload=lambda: Worker.offload(worker))
    engines = SimpleNamespace(wake=lambda what: log.append(f"engines wake: {what}"))
    with Turns(actor, engines, shared=True).engine_turn():
        log.append("the sync")
    return log


@pytest.mark.parametrize("on_host", [False, True], ids=["", "optimizer_cpu_offload"])
def test_memory_is_the_drivers_again_when_engines_wake(on_host):
    (log,) = run_ranks(1, hand_over, on_host, stage="tests.contract.played")
    leaves = [] if on_host else ["the optimizer's state goes to the host", "the cache is given back"]
    assert log == [
        "gradients are dropped", "the cache is given back", *leaves,
        "engines wake: weights", "the sync", "engines wake: kv_cache",
    ]  # fmt: skip
