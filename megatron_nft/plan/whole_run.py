"""A run from its start to its end: hours, and hours of all devices together, by what they go into."""

from dataclasses import dataclass

from megatron_nft.config import Config
from megatron_nft.plan.evaluation import Evaluation
from megatron_nft.plan.saving import Saving
from megatron_nft.plan.start import Start


@dataclass(frozen=True, kw_only=True)
class WholeRun:
    """Without restarts."""

    steps: int
    parts: dict[str, float]  # seconds
    devices: int

    @property
    def hours(self) -> float:
        return sum(self.parts.values()) / 3600

    @property
    def device_hours(self) -> float:
        return self.hours * self.devices


def plan_whole_run(
    config: Config,
    step_s: float,
    devices: int,
    *,
    start: Start | None,
    evaluation: Evaluation | None,
    saving: Saving | None,
) -> WholeRun:
    """
    Args:
        step_s: of a step with neither evaluation nor checkpoint.
    """
    steps, train = config.train.steps, config.train
    parts = {"start": start.seconds if start else 0.0, "steps": steps * step_s}
    if evaluation is not None:
        beside = 1 + ((steps - 1) // train.evaluate_every if train.evaluate_every else 0)
        parts["evaluations"] = beside * evaluation.beside_s + evaluation.alone_s  # alone after the last step
    if saving is not None:
        times = -(-steps // config.checkpoint.every)
        parts["checkpoints"] = times * saving.seconds + (0.0 if saving.waits else saving.write_s)  # the last is awaited
    return WholeRun(steps=steps, parts=parts, devices=devices)
