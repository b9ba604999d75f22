"""The machines of a run."""

from typing import Literal

from pydantic import Field

from megatron_nft.config.section import Section


class ClusterConfig(Section):
    """Devices, who shares them, and how often a run starts again."""

    device: Literal["cpu", "cuda"] = "cuda"
    """Where actors and engines run. The rest of the program is the same."""
    placement: Literal["split", "colocated"] = "split"
    """"split": actors and engines have GPUs (or cores) of their own. "colocated": engine i takes turns with the actor
    ranks from rollout.tp x i on, on the same GPUs; the one that waits gives its memory back."""
    actor_ranks: int | None = Field(None, ge=1)
    """Ranks that this job has for the actor, checked against tp x pp x dp. Unset: as many as the layout needs."""
    threads_per_process: int = Field(1, ge=1)
    """CPU threads of each actor rank and engine (OMP_NUM_THREADS)."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Longest wait for actors and engines to come up."""
    max_restarts: int = Field(3, ge=0)
    """Times in a row that lost actor ranks are started again in this job, from the last checkpoint, before the run
    stops. A step further than ever before ends the row."""
