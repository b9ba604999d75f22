"""Parallel ranks: who this process is in the grid of tensor, context, data and pipeline axes, and in that of experts.
The only caller of parallel_state's initialisation.

A rank number and the actor's layout come in; process groups (NCCL, or gloo on a CPU) and a `Topology` go out. Ranks are
numbered as Megatron numbers them: tensor axis fastest, then context, data, pipeline. For a mixture's experts the ranks
of a stage are numbered anew: their tensor axis fastest, then the experts', then replicas. Called by actor/worker.py.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_nft.actor.cpu_messages import forget_shared_memory, share_memory
from megatron_nft.config import ActorConfig
from megatron_nft.families.rules import AxisPlace, Place

DETERMINISTIC = {
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",  # TransformerEngine's attention, its backward pass
    "NCCL_ALGO": "^NVLS",  # NVLink's switches add up in an order of their own
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""actor.deterministic: what Megatron-LM asks of the environment beside its deterministic_mode."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """This rank's place."""

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    dp_rank: int
    dp_size: int
    device: torch.device
    etp_size: int = 1
    ep_size: int = 1

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def speaks(self) -> bool:
        """Whether this rank answers for its data-parallel replica: it has the log-probs."""
        return self.is_last_stage and self.tp_rank == 0 and self.cp_rank == 0

    @property
    def number(self) -> int:
        """Of this rank, in its stage."""
        return self.tp_rank + self.tp_size * (self.cp_rank + self.cp_size * self.dp_rank)

    @property
    def place(self) -> Place:
        """Among the ranks of its stage: which shards it has, and which of those it owns (families/rules.py)."""
        return self._place_of(self.number)

    @property
    def stage_places(self) -> tuple[Place, ...]:
        """Of the ranks that together hold this rank's stage once, by their number in the group that they form."""
        return tuple(self._place_of(number) for number in range(self._holders))

    @property
    def holds_stage(self) -> bool:
        """Whether this rank is one of the first that do."""
        return self.number < self._holders

    @property
    def _holders(self) -> int:
        return max(self.tp_size, self.etp_size * self.ep_size)

    def _place_of(self, number: int) -> Place:
        tp, cp, dp = self.tp_size, self.cp_size, self.dp_size
        etp, ep = self.etp_size, self.ep_size
        return (
            AxisPlace("tp", number % tp, tp),
            AxisPlace("cp", number // tp % cp, cp),
            AxisPlace("dp", number // (tp * cp), dp),
            AxisPlace("etp", number % etp, etp),
            AxisPlace("ep", number // etp % ep, ep),
            AxisPlace("edp", number // (etp * ep), tp * cp * dp // (etp * ep)),
        )


def free_address(host: str = "127.0.0.1") -> str:
    """ "host:port" of this machine at which ranks can meet: no socket has that port now, on any of its addresses, since
    torch listens on all of them.

    Args:
        host: the address by which the ranks know this machine.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"


def address_toward(master: str) -> str:
    """This machine's address on the network on which `master` ("host:port") is reached."""
    host, _, port = master.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # a datagram socket: sends nothing, but picks the interface
        return probe.getsockname()[0]


def data_parallel_rank(config: ActorConfig, rank: int) -> int:
    """The data-parallel rank of global rank `rank`, for a driver that hands out microbatches."""
    return rank // (config.tp * config.cp) % config.dp


def init_topology(config: ActorConfig, *, rank: int, master: str, device: str, seed: int) -> Topology:
    """Joins the process group at `master` ("host:port") and builds Megatron's groups in it.

    Raises:
        RuntimeError: CUDA is asked for where there is none, or the reverse.
    """
    if device == "cpu":
        from megatron_nft.actor.cpu import adapt_to_cpu

        adapt_to_cpu()
        torch_device = torch.device("cpu")
    else:
        if not torch.cuda.is_available():
            raise RuntimeError("cluster.device = cuda, but torch finds no CUDA device; set cluster.device = cpu")
        if config.deterministic:
            os.environ.update(DETERMINISTIC)
        local_rank = int(os.environ.get("LOCAL_RANK", 0))  # torchrun's; Ray shows each actor its own device as number 0
        torch.cuda.set_device(local_rank)
        torch_device = torch.device("cuda", local_rank)

    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    dist.init_process_group(
        backend="gloo" if device == "cpu" else "nccl",
        init_method=f"tcp://{master}",
        rank=rank,
        world_size=config.world_size,
        timeout=timedelta(seconds=config.timeout_s),
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tp,
        pipeline_model_parallel_size=config.pp,
        virtual_pipeline_model_parallel_size=config.vpp if config.vpp > 1 else None,
        distributed_timeout_minutes=max(1, round(config.timeout_s / 60)),
        context_parallel_size=config.cp,
        expert_model_parallel_size=config.ep,
        expert_tensor_parallel_size=config.expert_tp,
        create_gloo_process_groups=False,
    )
    if device == "cpu" and config.tp == 2:
        share_memory(parallel_state.get_tensor_model_parallel_group(), config.timeout_s)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
    return Topology(
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=config.tp,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=config.pp,
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=config.cp,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=config.dp,
        device=torch_device,
        etp_size=config.expert_tp,
        ep_size=config.ep,
    )


def stage_group() -> dist.ProcessGroup:
    """The ranks that together hold this rank's stage once: those of one replica of the tensor axis, or of the experts'
    two axes where these are more."""
    from megatron.core import parallel_state

    dense = parallel_state.get_tensor_model_parallel_group()
    experts = parallel_state.get_expert_tensor_and_model_parallel_group()
    return experts if experts.size() > dense.size() else dense


def destroy_topology() -> None:
    """Leaves the process groups."""
    from megatron.core import parallel_state

    forget_shared_memory()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
