"""HF safetensors <-> this rank's Megatron parameters, by the family's table.

`load_hf_weights` fills a model from an HF folder, reading only the tensors that this stage holds; `named_shards` lists
the parameters under names with global layer numbers. Called by actor/worker.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.utils import unwrap_model
from torch import Tensor, nn

from megatron_nft.actor.topology import Topology
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.families.lora import is_adapter
from megatron_nft.families.registry import table_of
from megatron_nft.families.weight_files import check_weights
from megatron_nft.weights.hf_tensors import HFTensors
from megatron_nft.weights.layouts import to_shard


def _parameters(model: Sequence[nn.Module]) -> Iterator[tuple[GPTModel, str, nn.Parameter]]:
    """Of the model itself, without adapters."""
    for chunk in model:
        gpt: GPTModel = unwrap_model(chunk)
        for name, parameter in gpt.named_parameters():
            if not is_adapter(name):
                yield gpt, name, parameter


def named_shards(model: Sequence[nn.Module], hf: HFConfig) -> Iterator[tuple[str, Tensor]]:
    """(name with the global layer number, parameter) of this rank, less the last stage's copy of a tied embedding."""
    for gpt, name, parameter in _parameters(model):
        if name == "output_layer.weight" and hf.tie_word_embeddings:
            continue
        yield with_global_layer(name, gpt), parameter


def load_hf_weights(model: Sequence[nn.Module], folder: str | Path, hf: HFConfig, topology: Topology) -> None:
    """Fills every parameter of this rank's chunks from an HF folder.

    Of ranks with equal parameters one reads, and the others get what it has read: a file system gives a model's bytes
    once to all replicas. A collective of those ranks.

    Raises:
        ModelFolderError: it is not the model of config.json, see families/weight_files.py.
    """
    check_weights(folder, hf)
    tensors, table = HFTensors(folder), table_of(hf)
    with torch.no_grad():
        for gpt, name, parameter in _parameters(model):
            if name == "output_layer.weight" and hf.tie_word_embeddings:
                name = "embedding.word_embeddings.weight"  # the last stage's copy
            rule, numbers = table.find(with_global_layer(name, gpt))
            names = list(rule.hf_shapes(numbers, topology.place))
            group = _replicas(parameter)
            if dist.get_rank(group) == 0:
                shard = to_shard(rule, [tensors[hf_name] for hf_name in names], topology.place)
            else:
                shard = torch.empty(parameter.shape, dtype=tensors.spec(names[0])[0])
            assert shard.shape == parameter.shape, f"{name}: {tuple(shard.shape)}, Megatron's {tuple(parameter.shape)}"
            if dist.get_world_size(group) > 1:
                shard = shard.to(topology.device).contiguous()
                dist.broadcast(shard, group=group, group_src=0)
            parameter.copy_(shard)
            if hasattr(parameter, "get_high_precision_init_val"):  # fp8_param: master weights start from this
                if parameter.requires_grad:
                    parameter.get_high_precision_init_val().copy_(shard)
                else:  # none do: a copy of the model on the host for nobody
                    parameter.clear_high_precision_init_val()


def _replicas(parameter: nn.Parameter) -> dist.ProcessGroup:
    """Ranks that have the same parameter: Megatron marks those of experts, which lie across the dense ones' axes."""
    if getattr(parameter, "allreduce", True):
        return parallel_state.get_data_parallel_group(with_context_parallel=True)
    return parallel_state.get_expert_data_parallel_group()


def with_global_layer(name: str, gpt: GPTModel) -> str:
    """The name of a chunk's parameter or module, as it is in the whole model."""
    parts = name.split(".")
    if parts[:2] != ["decoder", "layers"] or len(parts) == 2:
        return name
    parts[2] = str(gpt.decoder.layers[int(parts[2])].layer_number - 1)  # Megatron counts layers from 1
    return ".".join(parts)
