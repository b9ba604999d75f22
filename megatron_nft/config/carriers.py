"""What each carrier of weights does, for who must know without its code: the planner, and the rank that holds it.

The carriers themselves are weights/shared_memory.py, collective.py and cuda_ipc.py; their senders count rounds by this.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CarrierTraits:
    """How a carrier goes about a sync."""

    stages_take_turns: bool = False
    """A round sends a bucket of one pipeline stage; else one of each."""
    every_rank_sends: bool = False
    """All ranks take part, and hold the buckets of all stages; else those that own tensors of their stage."""
    is_in_host_memory: bool = False
    """Where buckets lie; else on the device."""
    crosses_nodes: bool = False
    """By the network, whoever is at its other end."""

    def num_rounds(self, buckets: Sequence[int]) -> int:
        """Rounds of a sync.

        Args:
            buckets: number of each stage's, of the stages that are asked about.
        """
        return (len(buckets) if self.stages_take_turns else 1) * max(buckets)


CARRIERS = {
    "shared_memory": CarrierTraits(is_in_host_memory=True),
    "collective": CarrierTraits(crosses_nodes=True),
    "cuda_ipc": CarrierTraits(stages_take_turns=True, every_rank_sends=True),
}
"""By the values of weights.carrier, less "auto"."""
