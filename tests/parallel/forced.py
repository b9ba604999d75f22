"""The oracle's half of routing replay: a transformers mixture whose tokens go to given experts."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from megatron_nft.types import TrainSequence


@contextmanager
def forced(model: torch.nn.Module, experts_R: np.ndarray | None) -> Iterator[None]:
    """In this block the first R tokens go to these experts [R, layers, experts a token]; None: all where they will."""
    gates = [] if experts_R is None else gates_of(model)
    for layer, gate in gates:
        gate.forward = _forward(gate, torch.from_numpy(experts_R[:, layer].astype(np.int64)))
    try:
        yield
    finally:
        for _, gate in gates:
            del gate.forward


def gates_of(model: torch.nn.Module) -> list[tuple[int, torch.nn.Module]]:
    """The routers with their layers' numbers."""
    return [(n, layer.mlp.gate) for n, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")]


def _forward(gate: torch.nn.Module, given_RK: torch.Tensor):
    """transformers' Qwen2/3MoeTopKRouter.forward, but for where the experts come from."""

    def forward(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = torch.nn.functional.linear(hidden.reshape(-1, gate.hidden_dim), gate.weight)
        scores = torch.softmax(logits, -1, dtype=torch.float)
        experts = scores.topk(gate.top_k, -1).indices
        experts[: len(given_RK)] = given_RK
        values = scores.gather(1, experts)
        if gate.norm_topk_prob:
            values = values / values.sum(-1, keepdim=True)
        return logits, values.to(logits.dtype), experts

    return forward


def own_experts(model: torch.nn.Module, sequence: TrainSequence) -> np.ndarray:
    """uint8 [T, layers, experts a token]: where all tokens go by themselves."""
    found: dict[int, torch.Tensor] = {}

    def take(layer: int):
        return lambda gate, given, outputs: found.__setitem__(layer, outputs[2])

    hooks = [gate.register_forward_hook(take(layer)) for layer, gate in gates_of(model)]
    with torch.no_grad():
        model(torch.from_numpy(sequence.token_ids_T).long()[None])
    for hook in hooks:
        hook.remove()
    rows = np.zeros((sequence.num_tokens, len(model.model.layers), next(iter(found.values())).shape[1]), np.uint8)
    for layer, experts in found.items():
        rows[:, layer] = experts.numpy()
    return rows
