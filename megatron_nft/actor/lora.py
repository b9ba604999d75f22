"""LoRA on Megatron's linear modules, its own and TransformerEngine's: a class laid over each module's own.

A chunk of the model comes in before it is wrapped for data parallelism; its parameters are frozen, and the modules that
the recipe names have A and B beside their weight. Both are cut as the weight is: a module whose output is cut over the
tensor-parallel ranks (linear_qkv, linear_fc1) has A whole and its rows of B, one whose input is cut (linear_proj,
linear_fc2) its columns of A and B whole. So messages are r wide, and B A of a rank's parts is its part of B A. What is
whole sees, with sequence parallelism, each rank's own tokens: it is marked, and Megatron sums its gradient.

Called by actor/model.py and actor/worker.py; which parameters there are, and what PEFT calls them: families/lora.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import unwrap_model
from torch import Tensor, nn

from megatron_nft.actor.hf_weights import with_global_layer
from megatron_nft.actor.topology import Topology
from megatron_nft.config import LoraConfig
from megatron_nft.families.adapter_folder import WEIGHTS
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.families.lora import A, Adapters, B, adapter_table
from megatron_nft.families.rules import Layout, Rule
from megatron_nft.weights.hf_tensors import HFTensors
from megatron_nft.weights.layouts import to_shard

ALIKE, OWN = "lora-alike", "lora-own"
"""Random numbers of dropout: for inputs that the tensor-parallel ranks have alike, and for a rank's own."""
SEED_STRIDE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an adapted module must know."""

    rank: int
    scale: float
    dropout: float
    is_row: bool  # its input is cut over the tensor-parallel ranks, else its output
    is_gated: bool  # gate and up, which a checkpoint holds apart
    sequence_parallel: bool
    group: torch.distributed.ProcessGroup
    groups: int  # into which this rank's rows of B fall, one after the other
    shares: list[int]  # in each, rows of each piece: of queries, keys, values; of gate and up

    @property
    def draws(self) -> str:
        """Name of the random numbers for its input."""
        return OWN if self.is_row or self.sequence_parallel else ALIKE


class Adapted:
    """Before a linear module's class in the order of its methods: adds scale B A x.

    A module that normalises its input first (TransformerEngine's) is asked for what it has normalised.
    """

    lora: Facts
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    is_on: bool

    def forward(self, input_: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor | None]:
        output, bias, seen = _taken_apart(super().forward(input_, *arguments, **keywords), input_)
        if not self.is_on:
            return output, bias
        return output + self.lora.scale * self._product(self._low(seen)), bias

    def _low(self, seen: Tensor) -> Tensor:
        """A x of all tokens, [tokens, 1, A's rows]; of a module whose input is cut: of the tokens that it puts out."""
        facts = self.lora
        if self.training and facts.dropout:
            with get_cuda_rng_tracker().fork(facts.draws):
                seen = F.dropout(seen, facts.dropout)
        low = F.linear(seen, self.lora_a)
        if facts.is_row:
            if facts.sequence_parallel:
                return reduce_scatter_to_sequence_parallel_region(low, group=facts.group)
            return reduce_from_tensor_model_parallel_region(low, group=facts.group)
        if facts.sequence_parallel:
            return gather_from_sequence_parallel_region(low, group=facts.group)
        return copy_to_tensor_model_parallel_region(low, group=facts.group)

    def _product(self, low: Tensor) -> Tensor:
        """B (A x), in the order of the module's output."""
        outputs = [
            F.linear(part, piece.reshape(-1, self.lora.rank)).unflatten(-1, (self.lora.groups, -1))
            for part, piece in zip(low.split(self.lora.rank, dim=-1), self._pieces(), strict=True)
        ]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)).flatten(-2)

    def _pieces(self) -> Sequence[Tensor]:
        """B's rows that belong to each A, [groups, rows of a group, r]."""
        whole = self.lora_b.view(self.lora.groups, -1, self.lora.rank)
        return [whole] if len(self.lora_a) == self.lora.rank else whole.split(self.lora.shares, dim=1)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """scale B A, in fp32 and in the shape of this rank's weight."""
        products = [
            piece.float() @ a.float()
            for a, piece in zip(self.lora_a.split(self.lora.rank), self._pieces(), strict=True)
        ]
        return self.lora.scale * torch.cat(products, dim=1).flatten(0, 1)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """The module's own, in which A and B stand as if each rank had them whole; here they are told as they are."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        state |= make_sharded_tensors_for_checkpoint(
            {A: self.lora_a, B: self.lora_b},
            prefix,
            {A: 1} if self.lora.is_row else {B: 0},
            sharded_offsets,
            tp_group=self.lora.group,
            dp_cp_group=(metadata or {}).get("dp_cp_group"),
        )
        if self.lora.is_gated:  # MLP does so for the weight only
            state[f"{prefix}{B}"] = apply_swiglu_sharded_factory(state[f"{prefix}{B}"], sharded_offsets)
        return state


def _taken_apart(outputs: Any, input_: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """A linear module's output and bias, and what its weight was multiplied with."""
    if len(outputs) == 3:  # TransformerEngine's: output, bias, normalised input
        return outputs
    output, bias = outputs
    return (output[0], bias, output[1]) if isinstance(output, tuple) else (output, bias, input_)


def add_adapters(
    chunks: Sequence[nn.Module],
    hf: HFConfig,
    lora: LoraConfig,
    topology: Topology,
    *,
    seed: int,
    recomputes: bool,
) -> None:
    """Freezes this rank's chunks and gives their modules adapters. Before they are wrapped for data parallelism.

    Args:
        seed: of the first A.
        recomputes: whole layers are computed again in the backward pass.
    """
    adapters = lora.adapters
    assert adapters is not None
    source = _Initial(lora.adapter, seed)
    if lora.dropout:
        _add_random_numbers(topology, seed)
    table = adapter_table(hf, adapters)
    for gpt in map(unwrap_model, chunks):
        gpt.requires_grad_(False)
        for name, module in _modules(gpt):
            if name.rpartition(".")[2] in adapters.targets:
                rules = [table.find(f"{name}.{part}") for part in (A, B)]
                _adapt(module, rules, lora, adapters, topology, source)
        if recomputes and gpt.pre_process:
            # What is computed again has a gradient only if its input carries one, and the embedding is frozen.
            gpt.embedding.register_forward_hook(
                lambda module, inputs, output: output.requires_grad_(True) if torch.is_grad_enabled() else output
            )


def _modules(gpt: nn.Module) -> list[tuple[str, nn.Module]]:
    """All of a chunk, by their names with global layer numbers."""
    return [(with_global_layer(name, gpt), module) for name, module in gpt.named_modules()]


def _adapt(
    module: nn.Module,
    rules: list[tuple[Rule, dict[str, int]]],
    lora: LoraConfig,
    adapters: Adapters,
    topology: Topology,
    source: "_Initial",
) -> None:
    (of_a, numbers), (of_b, _) = rules
    is_row = bool(of_a.axes)
    layout: Layout = of_b.layout
    tp = layout.share(topology.place)[1]
    groups = layout.groups // tp if layout.groups else 1
    module.lora = Facts(
        rank=adapters.rank,
        scale=adapters.scale,
        dropout=lora.dropout,
        is_row=is_row,
        is_gated=of_b.megatron.endswith(f"linear_fc1.{B}"),
        sequence_parallel=bool(module.config.sequence_parallel and topology.tp_size > 1),
        group=parallel_state.get_tensor_model_parallel_group(),
        groups=groups,
        shares=[rows // tp // groups for rows in layout.rows],
    )
    dtype = module.config.params_dtype
    for name, rule in ((A, of_a), (B, of_b)):
        tensors = [source(hf_name, shape) for hf_name, shape in rule.hf_shapes(numbers).items()]
        shard = to_shard(rule, tensors, topology.place).to(topology.device, dtype, copy=True)
        parameter = nn.Parameter(shard.contiguous())
        if rule.axes:
            set_tensor_model_parallel_attributes(parameter, True, rule.layout.dim, 1)
        else:
            parameter.sequence_parallel = module.lora.sequence_parallel
        module.register_parameter(name, parameter)
    if hasattr(module, "return_layernorm_output"):
        module.return_layernorm_output = True
        module.return_layernorm_output_gathered = False
    module.is_on = True
    module.__class__ = type(f"Adapted{type(module).__name__}", (Adapted, type(module)), {})


class _Initial:
    """An adapter's first numbers by PEFT's names, of a PEFT folder or drawn: the same in every layout."""

    def __init__(self, folder: str | None, seed: int) -> None:
        self._tensors = None if folder is None else HFTensors(folder, single=WEIGHTS)
        self._seed = seed

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if self._tensors is not None:
            return self._tensors[name]
        if name.endswith("lora_B.weight"):
            return torch.zeros(shape)
        key = int.from_bytes(blake2b(f"{self._seed}/{name}".encode(), digest_size=7).digest())
        bound = shape[1] ** -0.5  # kaiming_uniform with a = sqrt(5), as PEFT has it
        return torch.empty(shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(key))


def _add_random_numbers(topology: Topology, seed: int) -> None:
    """Of dropout, in the tracker of which Megatron's recomputation and checkpoints take care."""
    replica = (topology.pp_rank * topology.dp_size + topology.dp_rank) * topology.cp_size + topology.cp_rank
    first = seed + SEED_STRIDE * (1 + replica * (1 + topology.tp_size))
    tracker = get_cuda_rng_tracker()
    tracker.add(ALIKE, first)
    tracker.add(OWN, first + SEED_STRIDE * (1 + topology.tp_rank))


def adapted_modules(chunks: Sequence[nn.Module]) -> Iterator[tuple[str, Adapted]]:
    """(name with the global layer number, module) of this rank."""
    pairs = (pair for chunk in chunks for pair in _modules(unwrap_model(chunk)))
    return ((name, module) for name, module in pairs if isinstance(module, Adapted))


def named_adapters(chunks: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """(name with the global layer number, parameter) of this rank's adapters."""
    for name, module in adapted_modules(chunks):
        yield f"{name}.{A}", module.lora_a
        yield f"{name}.{B}", module.lora_b


def deltas(chunks: Sequence[nn.Module]) -> dict[str, Callable[[], Tensor]]:
    """By the name of a weight: what its adapter adds to it."""
    return {f"{name}.weight": module.delta for name, module in adapted_modules(chunks)}


@contextmanager
def base_alone(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """The model without its adapters: what training began from."""
    modules = [module for _, module in adapted_modules(chunks)]
    for module in modules:
        module.is_on = False
    try:
        yield
    finally:
        for module in modules:
            module.is_on = True
