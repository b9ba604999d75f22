"""The length of a run."""

from collections.abc import Iterator

from pydantic import Field

from megatron_nft.config.section import Section


class TrainConfig(Section):
    """Steps and updates, and what happens every so many steps."""

    steps: int = Field(100, ge=1)
    """Rollout steps. Each samples, grades, trains and syncs the weights once."""
    groups_per_step: int = Field(512, ge=1)
    """Groups that a step trains on: prompts with right and wrong answers, "mixed"; of a method that compares no answer
    with its group's (psr, nsr, w_reinforce, topr, asymre) every prompt with an answer that it weighs."""
    updates_per_step: int = Field(16, ge=1)
    """Optimizer updates per step; must divide groups_per_step."""
    evaluate_every: int = Field(5, ge=0)
    """Evaluate on the held-out prompts every so many steps, besides before the first and after the last. 0: only
    those."""
    export_every: int = Field(0, ge=0)
    """Write the model as an HF folder every so many steps, besides after the last. 0: only after the last."""

    def problems(self) -> Iterator[str]:
        """What its settings can't be together."""
        if self.groups_per_step % self.updates_per_step:
            yield (
                f"train.groups_per_step = {self.groups_per_step} is not a multiple of "
                f"train.updates_per_step = {self.updates_per_step}; every update takes the same number of groups"
            )
