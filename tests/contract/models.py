"""What a rank reports about TransformerEngine's models as they are built: names, shapes, marks, checkpoint keys, the
optimizer's class. test_te_models.py compares it with families/."""

from dataclasses import dataclass
from typing import Any

BUCKET_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Built:
    """Of one family on one rank."""

    hf_names: list[str]
    """That its stage sends."""
    misplaced_marks: list[str]
    """Parameters whose marks for tensor or sequence parallelism are not those of their rule."""
    checkpoint_keys: set[str]
    weight_keys: set[str]
    """Of what is asked of a checkpoint when weights alone are read."""
    extra_states: list[str]
    """Layers' in a checkpoint."""
    parameter_classes: set[str]
    experts: list[str]
    """Classes of its layers' experts."""
    optimizer: list[str]
    """Of the outermost to the innermost: classes, and where the last is from."""


def build(rank: int, master: str, folders: dict[str, str], settings: dict[str, Any]) -> dict[str, Built]:
    """Each folder's model, loaded, with an optimizer. `settings`: of the actor; "optimizer": those of the optimizer."""
    from megatron_nft.actor.topology import destroy_topology, init_topology
    from megatron_nft.config import ActorConfig, OptimizerConfig

    settings = dict(settings)
    optimizer = OptimizerConfig(**settings.pop("optimizer", {}))
    actor = ActorConfig(**settings)
    topology = init_topology(actor, rank=rank, master=master, device="cuda", seed=1)
    found = {family: _build(folder, actor, optimizer, topology) for family, folder in folders.items()}
    destroy_topology()
    return found


def _build(folder: str, actor: Any, optimizer_config: Any, topology: Any) -> Built:
    import torch
    from megatron.core.utils import unwrap_model

    from megatron_nft.actor.checkpoint import _weights
    from megatron_nft.actor.fp8_scales import is_extra_state, plain
    from megatron_nft.actor.hf_weights import load_hf_weights, named_shards
    from megatron_nft.actor.model import build_model
    from megatron_nft.actor.optimizer import build_optimizer
    from megatron_nft.actor.optimizer_shares import optimizer_state
    from megatron_nft.families.hf_config import read_hf_config
    from megatron_nft.families.registry import table_of
    from megatron_nft.weights.plan import plan_weights

    hf = read_hf_config(folder)
    model = build_model(hf, actor, topology)
    load_hf_weights(model, folder, hf, topology)  # asserts every shape
    table, shards = table_of(hf), list(named_shards(model, hf))
    misplaced = []
    for name, parameter in shards:
        rule, _ = table.find(name)
        marks = getattr(parameter, "tensor_model_parallel", False), getattr(parameter, "sequence_parallel", False)
        if marks != (bool(rule.axes), actor.sequence_parallel and not rule.axes):
            misplaced.append(f"{name}: {marks}")
    plan = plan_weights(shards, table, places=topology.stage_places, dtype=torch.bfloat16, bucket_bytes=BUCKET_BYTES)
    optimizer, _ = build_optimizer(model, optimizer_config, actor, updates_per_step=1)
    states = {
        f"model{number}": unwrap_model(chunk).sharded_state_dict(metadata={}) for number, chunk in enumerate(model)
    }
    if not optimizer_config.optimizer_cpu_offload:  # that one looks for tensors which lie on the device
        optimizer_state(optimizer, states, is_loading=True)
    chunks = [unwrap_model(chunk) for chunk in model]
    entries = {n: v for c, state in zip(chunks, states.values(), strict=True) for n, v in plain(c, state).items()}
    classes = [optimizer]
    while inner := (getattr(classes[-1], "chained_optimizers", None) or [getattr(classes[-1], "optimizer", None)])[0]:
        classes.append(inner)
    return Built(
        hf_names=plan.hf_names,
        misplaced_marks=misplaced,
        checkpoint_keys={value.key for name, value in entries.items() if not is_extra_state(name)},
        weight_keys={value.key for chunk in chunks for value in _weights(chunk).values()},
        extra_states=[name for name in entries if is_extra_state(name)],
        parameter_classes={type(p.data).__name__ for chunk in model for p in chunk.parameters()},
        experts=sorted(
            {
                type(module.experts).__name__
                for chunk in model
                for module in chunk.modules()
                if hasattr(module, "experts")
            }
        ),
        optimizer=[*(type(each).__name__ for each in classes), type(classes[-1]).__module__.partition(".")[0]],
    )
