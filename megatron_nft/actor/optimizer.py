"""Megatron's distributed AdamW and its learning-rate schedule. Called by actor/worker.py."""

from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_nft.actor.performance import optimizer_arguments
from megatron_nft.actor.precision import PRECISIONS
from megatron_nft.config import ActorConfig, OptimizerConfig


class Schedule(OptimizerParamScheduler):
    """Megatron's, which counts updates; and the rollout step that an update belongs to.

    With warmup_rollout_steps the warm-up is in stairs, one a rollout step, the first at 0, as the authors' scheduler
    (verl, fsdp_workers.py) takes a step after all updates of a rollout step. Only updates are in a checkpoint, so that
    either resumes the other's.
    """

    def __init__(self, *arguments: Any, warmup_rollout_steps: int, updates_per_step: int, **named: Any) -> None:
        self._warmup_rollout_steps, self._updates_per_step = warmup_rollout_steps, updates_per_step
        self._rollout_step: int | None = None
        super().__init__(*arguments, **named)

    def begin_update(self, rollout_step: int | None = None) -> int:
        """Sets the rate of the next update; its rollout step, from 1. None: counted, by the recipe's updates a step,
        which a resumed run may have changed."""
        self._rollout_step = rollout_step
        self.step(1)
        return self._steps_done + 1

    @property
    def _steps_done(self) -> int:
        counted = max(self.num_steps - 1, 0) // self._updates_per_step
        return counted if self._rollout_step is None else self._rollout_step - 1

    def get_lr(self, param_group: dict) -> float:
        if not self._warmup_rollout_steps:
            return super().get_lr(param_group)
        return param_group.get("max_lr", self.max_lr) * min(self._steps_done / self._warmup_rollout_steps, 1.0)


def build_optimizer(
    model: list[DistributedDataParallel],
    optimizer: OptimizerConfig,
    actor: ActorConfig,
    updates_per_step: int,
    num_updates: int = 0,
) -> tuple[MegatronOptimizer, Schedule]:
    """AdamW with its state sharded over the data-parallel ranks, and its `build_schedule`."""
    megatron_optimizer = get_megatron_optimizer(
        optimizer_config(optimizer, actor), model, use_gloo_process_groups=False
    )
    return megatron_optimizer, build_schedule(megatron_optimizer, optimizer, updates_per_step, num_updates)


def build_schedule(scheduled: Any, optimizer: OptimizerConfig, updates_per_step: int, num_updates: int = 0) -> Schedule:
    """Warm-up, then a constant rate, of anything with param_groups; and a fall at the end, if asked for.

    Call its `begin_update` before each update. Update u then runs at learning_rate * min(u / warmup_updates, 1), or,
    with s rollout steps done, at learning_rate * min(s / warmup_rollout_steps, 1). Of the last n = decay_updates of
    U = num_updates, u runs at the share (U + 1 - u) / n of it.
    """
    special: dict[str, Any] = {"lr_decay_style": "constant", "lr_decay_steps": optimizer.warmup_updates + 1}
    if optimizer.decay_updates:
        special |= {"lr_decay_style": "WSD", "lr_wsd_decay_style": "linear", "wsd_decay_steps": optimizer.decay_updates}
        special["lr_decay_steps"] = num_updates + 1
    return Schedule(
        scheduled,
        warmup_rollout_steps=optimizer.warmup_rollout_steps,
        updates_per_step=updates_per_step,
        init_lr=0.0,
        max_lr=optimizer.learning_rate,
        min_lr=0.0,
        lr_warmup_steps=optimizer.warmup_updates,
        start_wd=optimizer.weight_decay,
        end_wd=optimizer.weight_decay,
        wd_incr_steps=1,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,  # a resumed run has its own recipe's values, not those of the checkpoint
        **special,
    )


def optimizer_config(optimizer: OptimizerConfig, actor: ActorConfig) -> MegatronOptimizerConfig:
    """Megatron's."""
    fmt = PRECISIONS[actor.precision]
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=optimizer.learning_rate,
        min_lr=0.0,  # of every parameter group; the schedule asks them, and not its own
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_eps=optimizer.eps,
        clip_grad=optimizer.grad_clip,
        bf16=fmt.is_bf16,
        params_dtype=fmt.dtype,
        use_distributed_optimizer=True,
        **optimizer_arguments(actor, optimizer),
    )
