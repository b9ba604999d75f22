"""Megatron's distributed AdamW."""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, model_validator

from megatron_nft.config.section import Section


class OptimizerConfig(Section):
    """AdamW, its learning rate, and where its state lies."""

    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW, held constant after the warm-up."""
    warmup_updates: int = Field(10, ge=0)
    """Warm-up counted in optimizer updates: update u of them runs at the share u / warmup_updates of the peak."""
    warmup_rollout_steps: int = Field(0, ge=0)
    """Warm-up counted in rollout steps, in place of warmup_updates: all updates of step s run at the share
    (s - 1) / warmup_rollout_steps of the peak, those of the first at 0, as in the NFT authors' code."""
    decay_updates: int = Field(0, ge=0)
    """The run's last so many updates, over which the learning rate falls, in equal steps, to the last step above 0."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW weight decay (not on norms and biases)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW first-moment decay."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW second-moment decay."""
    eps: float = Field(1e-8, gt=0)
    """AdamW denominator guard."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest global gradient norm; a longer gradient is scaled down to it."""
    optimizer_cpu_offload: bool = False
    """CUDA: hold master weights and moments in host memory, and update them there. Colocated, they stay where they are
    while engines generate: those that optimizer_offload_fraction leaves on the GPU, too."""
    optimizer_offload_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the parameters that optimizer_cpu_offload is for."""
    overlap_cpu_optimizer_d2h_h2d: bool = True
    """Overlap the offloaded update with its transfers."""
    skip_nonfinite: bool = False
    """What to do with an update whose gradient is not finite. false: stop before it, with the batch and the weights
    kept for `python -m megatron_nft.replay`; true: leave it out, keep the batch, count it and go on."""

    cuda_only: ClassVar[tuple[str, ...]] = ("optimizer_cpu_offload",)

    @model_validator(mode="before")
    @classmethod
    def _one_unit(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("warmup_rollout_steps") and "warmup_updates" not in given:
            return {**given, "warmup_updates": 0}
        return given

    def problems(self) -> Iterator[str]:
        """What its settings can't be together."""
        if self.warmup_updates and self.warmup_rollout_steps:
            yield (
                f"optimizer.warmup_updates = {self.warmup_updates} and optimizer.warmup_rollout_steps = "
                f"{self.warmup_rollout_steps} are one warm-up in two units; set one of them to 0"
            )
        if self.decay_updates and self.warmup_rollout_steps:
            yield (
                f"optimizer.decay_updates = {self.decay_updates} goes with a warm-up in updates, and "
                f"optimizer.warmup_rollout_steps = {self.warmup_rollout_steps}; set warmup_updates in its place"
            )
