"""What a recipe switches on to go faster, to fit or to repeat itself. Nothing here changes a result beyond rounding.

Settings carry Megatron-Core's names wherever it has one, and become its arguments here. Called by actor/model.py and
actor/worker.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.tensor_parallel import layers

from megatron_nft.actor.precision import PRECISIONS
from megatron_nft.config import ActorConfig, OptimizerConfig
from megatron_nft.families.hf_config import HFConfig


def transformer_arguments(actor: ActorConfig) -> dict[str, Any]:
    """Of TransformerConfig."""
    return {
        "gradient_accumulation_fusion": actor.gradient_accumulation_fusion,
        "tp_comm_overlap": actor.tp_comm_overlap,
        "fine_grained_activation_offloading": bool(actor.offload_modules),
        "offload_modules": list(actor.offload_modules),
        "cpu_offloading": actor.cpu_offloading_num_layers > 0,
        "cpu_offloading_num_layers": actor.cpu_offloading_num_layers,
        "deterministic_mode": actor.deterministic,
    }


@contextmanager
def fusion_without_apex() -> Iterator[None]:
    """gradient_accumulation_fusion, while a model is built: without apex Megatron's own linear layer refuses it.

    The output layer alone is one, and actor/logprobs.py's product stands in its place; TransformerEngine's layers have
    fused products of their own. To be removed when GPTModel takes its output layer from the specification.
    """
    found, layers._grad_accum_fusion_available = layers._grad_accum_fusion_available, True
    try:
        yield
    finally:
        layers._grad_accum_fusion_available = found


def ddp_config(actor: ActorConfig) -> DistributedDataParallelConfig:
    """Gradients summed in fp32 and the optimizer's state sharded, in every case."""
    return DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=actor.overlap_grad_reduce,
        overlap_param_gather=actor.overlap_param_gather,
        bucket_size=actor.ddp_bucket_size,
        fp8_param_gather=actor.fp8_param,
    )


def optimizer_arguments(actor: ActorConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """Of Megatron's OptimizerConfig."""
    arguments: dict[str, Any] = {"overlap_param_gather": actor.overlap_param_gather}
    if actor.fp8_param:
        arguments["fp8_recipe"] = PRECISIONS[actor.precision].fp8_recipe
    if optimizer.optimizer_cpu_offload:
        arguments |= {
            "optimizer_cpu_offload": True,
            "optimizer_offload_fraction": optimizer.optimizer_offload_fraction,
            "overlap_cpu_optimizer_d2h_h2d": optimizer.overlap_cpu_optimizer_d2h_h2d,
            "use_torch_optimizer_for_cpu_offload": True,
        }
    return arguments


def start_user_buffers(hf: HFConfig, actor: ActorConfig) -> None:
    """tp_comm_overlap: TransformerEngine's communication buffers, before any layer is built.

    They have one size for good, so every microbatch is padded to the token budget (see `tokens_of_a_pass`). As
    Megatron-LM's training/initialize.py does; TransformerEngine has no other entry.
    """
    if not actor.tp_comm_overlap:
        return
    from transformer_engine.pytorch.module import base

    is_fp8 = actor.precision.startswith("fp8")
    modes = [base.UserBufferQuantizationMode.FP8] if is_fp8 else []
    if not is_fp8 or actor.num_layers_at_start_in_bf16 or actor.num_layers_at_end_in_bf16:
        modes.append(base.UserBufferQuantizationMode.NONE)
    base.initialize_ub(
        shape=[tokens_of_a_pass(actor), hf.hidden_size],
        tp_size=actor.tp,
        quantization_modes=modes,
        ub_cfgs={},
        bootstrap_backend="nccl",
    )


def tokens_of_a_pass(actor: ActorConfig) -> int:
    """A microbatch's tokens are padded to a multiple of this on every rank.

    Sequence parallelism cuts them over the ranks, FP8 products want whole tiles, and tp_comm_overlap one size only.
    """
    multiple = PRECISIONS[actor.precision].token_multiple * (actor.tp if actor.sequence_parallel else 1)
    return -(-actor.tokens_per_microbatch // multiple) * multiple if actor.tp_comm_overlap else multiple


def hold_back_reductions(model: Sequence[DistributedDataParallel]) -> None:
    """overlap_grad_reduce: gradients travel during the last microbatch's backward pass, not during each one's."""
    if model[0].ddp_config.overlap_grad_reduce:
        functions = [chunk.no_sync for chunk in model]
        model[0].config.no_sync_func = functions if len(functions) > 1 else functions[0]


def finish_param_gather(model: Sequence[DistributedDataParallel]) -> None:
    """overlap_param_gather: after an update the parameters arrive as the next forward pass needs them.

    Whoever reads them elsewhere (weight sync, export) must wait for them here first.
    """
    if model[0].ddp_config.overlap_param_gather:
        for chunk in model:
            chunk.start_param_sync(force_sync=True)
