"""Held-out accuracy, in a run and by megatron_nft.evaluate."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from megatron_nft.config.section import Section


class EvaluateConfig(Section):
    """Held-out accuracy: how many prompts and answers, how sampled."""

    max_prompts: int = Field(0, ge=0)
    """Evaluate on the first so many prompts of each held-out file. 0: all."""
    samples: int = Field(0, ge=0)
    """Sampled answers per prompt for avg@k. 0: greedy only, in a run."""
    samples_of: dict[str, Annotated[int, Field(ge=1)]] = Field({})
    """Benchmark (its file's name without the ending) -> sampled answers per prompt, where it isn't `samples`:
    {math500 = 1}."""
    greedy: bool = True
    """In a run: one answer more to every prompt, at temperature 0."""
    temperature: float = Field(0.6, ge=0)
    """Temperature of the sampled answers. 0, greedy, goes with one sample only."""
    top_p: float = Field(0.7, gt=0, le=1)
    """Nucleus of the sampled answers."""
    in_background: bool = True
    """Evaluate a step's weights during the next step: with cluster.placement = "split" while the actor trains, on the
    engines that would idle (the sync waits for it); "colocated" beside that step's rollouts, whose weights are the same
    ones, so that there is one tail for both. false, and `megatron_nft.train_async`: between the steps. The answers are
    the same."""

    def problems(self) -> Iterator[str]:
        """What its settings can't be together."""
        most_samples = max([self.samples, *self.samples_of.values()])
        if self.temperature == 0 and most_samples > 1:
            yield (
                f"evaluate.temperature = 0 gives {most_samples} equal answers; set evaluate.samples = 1, or a "
                "temperature above 0"
            )
        if not self.greedy and not self.samples and not self.samples_of:
            yield "evaluate.greedy = false and evaluate.samples = 0 leave nothing to measure; set one of them"
