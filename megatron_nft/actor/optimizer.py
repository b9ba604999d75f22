"""Megatron's distributed AdamW and its learning-rate schedule. Called by actor/worker.py."""

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_nft.actor.performance import optimizer_arguments
from megatron_nft.actor.precision import PRECISIONS
from megatron_nft.config import ActorConfig, OptimizerConfig


def build_optimizer(
    model: list[DistributedDataParallel], optimizer: OptimizerConfig, actor: ActorConfig
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """AdamW with its state sharded over the data-parallel ranks; linear warm-up, then a constant rate.

    Call the schedule's `step(1)` before each update: update u then runs at learning_rate * min(u / warmup_updates, 1).
    """
    megatron_optimizer = get_megatron_optimizer(
        optimizer_config(optimizer, actor), model, use_gloo_process_groups=False
    )
    schedule = OptimizerParamScheduler(
        megatron_optimizer,
        init_lr=0.0,
        max_lr=optimizer.learning_rate,
        min_lr=0.0,
        lr_warmup_steps=optimizer.warmup_updates,
        lr_decay_steps=optimizer.warmup_updates + 1,
        lr_decay_style="constant",
        start_wd=optimizer.weight_decay,
        end_wd=optimizer.weight_decay,
        wd_incr_steps=1,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,  # a resumed run has its own recipe's values, not those of the checkpoint
    )
    return megatron_optimizer, schedule


def optimizer_config(optimizer: OptimizerConfig, actor: ActorConfig) -> MegatronOptimizerConfig:
    """Megatron's."""
    fmt = PRECISIONS[actor.precision]
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=optimizer.learning_rate,
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
