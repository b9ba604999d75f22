"""A mixture's experts on the ranks: what Megatron is told of them beside the architecture, which the family says.

TransformerEngine's grouped layers on CUDA, experts one after the other on a CPU: `expert_arguments` is the switch, and
actor/model.py builds the layers that follow from it. The router computes in fp32 in every number format: a token whose
best experts are close would go to others in bf16.
"""

from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_nft.config import ActorConfig
from megatron_nft.families.hf_config import HFConfig


def expert_arguments(hf: HFConfig, actor: ActorConfig, *, on_cuda: bool) -> dict[str, Any]:
    """Of TransformerConfig."""
    if hf.mixture is None:
        return {}
    return {
        "expert_model_parallel_size": actor.ep,
        "expert_tensor_parallel_size": actor.expert_tp,
        "moe_grouped_gemm": on_cuda,
        "moe_permute_fusion": on_cuda,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if actor.moe_aux_loss_coeff else "none",
        "moe_aux_loss_coeff": actor.moe_aux_loss_coeff,
        "moe_router_bias_update_rate": 0.0,
    }


def has_experts(config: TransformerConfig, layer: int) -> bool:
    """Whether a layer, counted from 0 over the whole model, has experts."""
    frequency = config.moe_layer_freq
    return bool(frequency[layer]) if isinstance(frequency, list) else layer % frequency == 0
