"""An HF architecture as a Megatron-Core GPTModel: TransformerEngine layers on CUDA, local ones on a CPU.

An HFConfig and the actor's layout come in; this rank's stage and shards, wrapped for data parallelism, go out, with
uninitialised weights (actor/hf_weights.py fills them). What follows from the architecture, the model's family says.
"""

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.core.utils import unwrap_model
from torch import Tensor, nn

from megatron_nft.actor.attention import PackedCausalAttention
from megatron_nft.actor.experts import expert_arguments, has_experts
from megatron_nft.actor.logprobs import HiddenOutput
from megatron_nft.actor.lora import add_adapters
from megatron_nft.actor.performance import ddp_config, fusion_without_apex, start_user_buffers, transformer_arguments
from megatron_nft.actor.precision import PRECISIONS
from megatron_nft.actor.topology import Topology
from megatron_nft.config import ActorConfig, LoraConfig
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.families.registry import family_of
from megatron_nft.families.rules import padded_vocab_size

ACTIVATIONS = {"silu": F.silu}
"""By a family's name for it."""
RECOMPUTE = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def build_model(
    hf: HFConfig, actor: ActorConfig, topology: Topology, lora: LoraConfig | None = None, *, seed: int = 0
) -> list[DistributedDataParallel]:
    """This rank's part of the model to train, on its device, with gradient buffers: a chunk per virtual stage.

    Args:
        lora: adapters are trained in place of the model, if it says so; buffers are theirs only.
        seed: of the adapters' first numbers.
    """
    start_user_buffers(hf, actor)
    chunks = build_chunks(hf, actor, topology)
    if lora is not None and lora.rank:
        add_adapters(chunks, hf, lora, topology, seed=seed, recomputes=actor.recompute == "full")
    return [
        DistributedDataParallel(chunk.config, ddp_config(actor), chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]


def build_chunks(hf: HFConfig, actor: ActorConfig, topology: Topology) -> list[nn.Module]:
    """This rank's part of the model, on its device, without gradient buffers: enough to score."""
    config = transformer_config(hf, actor, topology)
    chunks = []
    for vp_stage in range(actor.vpp):
        with fusion_without_apex():
            gpt = GPTModel(
                config=config,
                transformer_layer_spec=layer_spec(config, topology, vp_stage if actor.vpp > 1 else None),
                vocab_size=padded_vocab_size(hf.vocab_size, actor.tp),
                pre_process=topology.is_first_stage and vp_stage == 0,
                post_process=topology.is_last_stage and vp_stage == actor.vpp - 1,
                **family_of(hf).gpt_arguments(hf),
                vp_stage=vp_stage if actor.vpp > 1 else None,
            ).to(topology.device)
        if gpt.post_process:
            # Megatron's layer in all but its forward: parameters, their marks and their checkpointing stay its own.
            gpt.output_layer.__class__ = HiddenOutput
        chunks.append(Float16Module(config, gpt) if config.bf16 else gpt)
    return chunks


def output_weight(chunk: nn.Module) -> Tensor:
    """[padded vocabulary / tp, hidden] of the last stage's chunk: its output layer's, or the tied embedding's."""
    gpt: GPTModel = unwrap_model(chunk)
    return gpt.shared_embedding_or_output_weight() if gpt.output_layer.weight is None else gpt.output_layer.weight


def transformer_config(hf: HFConfig, actor: ActorConfig, topology: Topology) -> TransformerConfig:
    """Megatron's arguments from the HF config and the layout."""
    architecture = family_of(hf).transformer_arguments(hf)
    precision, on_cuda = PRECISIONS[actor.precision], topology.device.type == "cuda"
    config = TransformerConfig(
        **architecture | {"activation_func": ACTIVATIONS[architecture["activation_func"]]},
        **precision.megatron_arguments(actor),
        tensor_model_parallel_size=actor.tp,
        pipeline_model_parallel_size=actor.pp,
        virtual_pipeline_model_parallel_size=actor.vpp if actor.vpp > 1 else None,
        num_layers_in_first_pipeline_stage=actor.num_layers_in_first_pipeline_stage,
        num_layers_in_last_pipeline_stage=actor.num_layers_in_last_pipeline_stage,
        context_parallel_size=actor.cp,
        sequence_parallel=actor.sequence_parallel,
        # Two ranks are each other's previous and next: only single messages, in order, then find the right receiver.
        overlap_p2p_comm=actor.vpp > 1,
        batch_p2p_comm=actor.vpp == 1,
        variable_seq_lengths=True,  # microbatches are packed to a budget, not padded to a length
        moe_token_dispatcher_type="alltoall",  # the only one that Megatron allows beside variable lengths
        **expert_arguments(hf, actor, on_cuda=on_cuda),
        # Gradients are summed over microbatches and ranks, never divided: actor/pipeline.py has normalised the loss.
        calculate_per_token_loss=True,
        use_cpu_initialization=not on_cuda,
        # The values are overwritten by the HF weights, but it is initialisation that marks parameters as tensor-
        # parallel, and the gradient norm counts an unmarked shard on one rank only.
        perform_initialization=True,
        persist_layer_norm=on_cuda,
        bias_activation_fusion=on_cuda,
        bias_dropout_fusion=on_cuda,
        # TransformerEngine's kernel leaves out yarn's scale of cosines and sines.
        apply_rope_fusion=on_cuda and hf.yarn is None,
        masked_softmax_fusion=on_cuda,
        **transformer_arguments(actor),
        **RECOMPUTE[actor.recompute],
    )
    for name, value in family_of(hf).config_attributes(hf).items():
        setattr(config, name, value)
    return config


def layer_spec(
    config: TransformerConfig, topology: Topology, vp_stage: int | None = None
) -> ModuleSpec | TransformerBlockSubmodules:
    """The one switch between TransformerEngine's layers and Megatron's local ones."""
    if topology.device.type == "cuda":
        if config.num_moe_experts is None:
            return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        return get_gpt_decoder_block_spec(
            config, use_transformer_engine=True, vp_stage=vp_stage, pp_rank=topology.pp_rank
        )
    dense = local_layer(config)
    layers = [dense] * get_num_layers_to_build(config, vp_stage)
    if config.num_moe_experts is not None:
        first = get_transformer_layer_offset(config, vp_stage, topology.pp_rank)
        sparse = local_layer(config, num_experts=config.num_moe_experts)
        layers = [sparse if has_experts(config, first + number) else dense for number in range(len(layers))]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def local_layer(config: TransformerConfig, *, num_experts: int | None = None) -> ModuleSpec:
    """Megatron's layer without TransformerEngine; with experts, one after the other."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm, num_experts=num_experts)
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    if num_experts is not None:  # as in TransformerEngine's layers: no linear has the norm before experts
        layer.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedCausalAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer


class RMSNorm(nn.Module):
    """Root-mean-square norm for local layers. Megatron's WrappedTorchNorm refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **megatron: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Each tensor-parallel rank normalises its own tokens, so Megatron must sum the weight's gradient over them.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """[tokens, 1, hidden] -> the same; statistics in fp32, as transformers does."""
        return F.rms_norm(hidden.float(), hidden.shape[-1:], None, self.eps).to(hidden.dtype) * self.weight
