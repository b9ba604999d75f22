"""What a run leaves to be looked at."""

from typing import Literal

from pydantic import Field

from megatron_nft.config.section import Section


class ObserveConfig(Section):
    """What a run writes besides its metrics."""

    rollouts_per_step: int = Field(16, ge=0)
    """Answers written to rollouts.jsonl each step."""
    save_batches: bool = False
    """Keep every step's training batch as batches/step_N.npz, for `python -m megatron_nft.replay`."""
    entropy: bool = False
    """Measure the policy's entropy at every answer token of the update; costs some time."""
    gap_bound: float | None = Field(None, ge=0)
    """Largest KL divergence of the actor's policy from the engine's that passes without an alarm, in nats a token, as
    the step's tokens estimate it. Unset: 1e-6 where both compute in fp32, 1e-3 in bf16, five times what is normal, 5e-3
    with experts, 1e-2 where one computes in FP8 or less; none where sampling is ahead, or rollout.top_p < 1. 0: no
    alarm. Beyond it the run says so with the likely cause, and keeps the batch as gap/step_N.npz; and at any size if
    the gap is what another temperature does."""
    gap_stop_after: int = Field(0, ge=0)
    """Steps in a row beyond the bound after which the run stops, with the last one saved. 0: it only warns."""
    trackers: list[Literal["tensorboard", "wandb"]] = Field([])
    """Where metrics go besides metrics.jsonl: run folder/tensorboard, Weights & Biases. Their packages are in
    requirements-trackers.txt."""
    wandb_mode: Literal["online", "offline"] = "online"
    """"offline" needs no network and no account, and writes what `wandb sync` uploads later."""
    wandb_project: str = "megatron_nft"
    """Project of the Weights & Biases run."""
    wandb_entity: str | None = None
    """Team or user of the Weights & Biases run. Unset: the account's own."""
