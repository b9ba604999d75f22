"""Which carrier a recipe uses, for both ends of the wire."""

from typing import Any

import torch
import torch.distributed as dist

from megatron_nft.config import Config
from megatron_nft.weights.collective import CollectiveReceiver, CollectiveSender
from megatron_nft.weights.cuda_ipc import CudaIpcReceiver, CudaIpcSender
from megatron_nft.weights.plan import WeightPlan
from megatron_nft.weights.shared_memory import SharedMemoryReceiver, SharedMemorySender
from megatron_nft.weights.wire import Receiver, Sender


def make_sender(
    config: Config,
    plan: WeightPlan,
    *,
    stage: int,
    group: dist.ProcessGroup,
    pp_group: dist.ProcessGroup,
    device: torch.device,
    host: str,
) -> Sender:
    """The sender of a rank that owns tensors of its stage, or of every rank (CarrierTraits.every_rank_sends).

    A collective of its groups.

    Args:
        group: the ranks that together hold the stage, at `plan.places`.
    """
    carrier = config.carrier
    if carrier == "shared_memory":
        checksums = config.weights.checksums
        return SharedMemorySender(plan, stage=stage, group=group, device=device, checksums=checksums)
    if carrier == "cuda_ipc":
        assert dist.group.WORLD is not None
        return CudaIpcSender(plan, group=group, pp_group=pp_group, world=dist.group.WORLD)
    return CollectiveSender(
        plan,
        stage=stage,
        group=group,
        device=device,
        host=host,
        num_receivers=config.rollout.engines * config.rollout.tp,
        timeout_s=config.weights.timeout_s,
    )


def make_receiver(carrier: str, place: int, device: torch.device) -> Receiver:
    """The receiver of an engine's worker.

    Args:
        carrier: of a manifest.
        place: of this worker among the workers of all engines, from 0.
    """
    makers: dict[str, Any] = {
        "shared_memory": SharedMemoryReceiver,
        "cuda_ipc": CudaIpcReceiver,
        "collective": lambda: CollectiveReceiver(place, device),
    }
    return makers[carrier]()
