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
    trackers: list[Literal["tensorboard", "wandb"]] = Field([])
    """Where metrics go besides metrics.jsonl: run folder/tensorboard, Weights & Biases. Their packages are in
    requirements-trackers.txt."""
    wandb_mode: Literal["online", "offline"] = "online"
    """"offline" needs no network and no account, and writes what `wandb sync` uploads later."""
    wandb_project: str = "megatron_nft"
    """Project of the Weights & Biases run."""
    wandb_entity: str | None = None
    """Team or user of the Weights & Biases run. Unset: the account's own."""
