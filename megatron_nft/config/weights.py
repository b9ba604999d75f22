"""The weight sync."""

from typing import Literal

from pydantic import Field

from megatron_nft.config.section import Section


class WeightsConfig(Section):
    """The way of the actor's weights into the engines."""

    carrier: Literal["auto", "shared_memory", "collective", "cuda_ipc"] = "auto"
    """How buckets travel: "shared_memory" on one machine; "collective", a broadcast by NCCL (gloo on CPUs), between
    machines or GPUs; "cuda_ipc" where actor and engines share GPUs. "auto": shared_memory on CPUs, cuda_ipc if
    colocated, else collective."""
    bucket_mib: int | None = Field(None, ge=1)
    """Size of a weight-sync bucket, over all pipeline stages. Two are in use at a time. Unset: a 16th of each stage's
    weights, but 16 to 512 MiB, and no less than the largest tensor."""
    checksums: bool = False
    """Send every bucket with a checksum that its readers compare, for a machine whose memory is in doubt."""
    timeout_s: float = Field(300.0, gt=0)
    """Longest wait for one phase of a weight sync before the run stops with the phase's name."""
    canary: Literal["start", "always", "never"] = "start"
    """When each engine answers one prompt and the actor scores the answer: "start", before the first step (and after
    every resume), so that a model which engines and actor read differently never trains; "always", after every sync,
    too. An engine whose log-probs are further than canary_gap from the actor's ends the run."""
    canary_gap: float | None = Field(None, gt=0)
    """Largest mean distance of engine and actor log-probs in the canary's answer, in nats per token. Unset: 0.001 where
    both compute in 32 bits, else 0.1."""
