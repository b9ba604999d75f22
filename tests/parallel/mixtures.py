"""Mixtures of experts in layouts: small random models, a table of layouts, what each rank has of every HF tensor."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tests.parallel.covering import covering
from tests.parallel.layouts import OVERLAP_BUCKET_SIZE, TOKEN_BUDGETS
from tests.parallel.oracle import VOCAB_SIZE, save_random

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 16, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 128,
    "initializer_range": 0.1, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "num_experts_per_tok": 2,
}  # fmt: skip
QWEN = {"num_experts": 8, "moe_intermediate_size": 48, "decoder_sparse_step": 1, "mlp_only_layers": []}
MODELS = {
    "qwen3_moe": QWEN | {"norm_topk_prob": True},
    "qwen3_moe mixed": QWEN | {"norm_topk_prob": True, "mlp_only_layers": [1], "tie_word_embeddings": True},
    "qwen2_moe": QWEN | {"norm_topk_prob": False, "shared_expert_intermediate_size": 80, "num_experts_per_tok": 3},
    "mixtral": {"num_local_experts": 8, "intermediate_size": 48},
}
"""By model_type, and what is special."""


def make_mixture(name: str, folder: Path, *, seed: int = 0, dtype: str = "float32", **changes: object) -> Path:
    from transformers import AutoConfig

    config = AutoConfig.for_model(name.split()[0], **(SIZES | MODELS[name] | changes))
    return save_random(config, folder, seed=seed, dtype=dtype)


@dataclass(frozen=True)
class MixtureLayout:
    """A row of the table."""

    tp: int
    pp: int
    vpp: int
    cp: int
    dp: int
    ep: int
    etp: int
    recompute: str
    microbatch: str
    model: str
    overlap: bool = False

    @property
    def num_processes(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def overrides(self) -> list[str]:
        """For `load_config`."""
        lines = [f"actor.{axis}={getattr(self, axis)}" for axis in ("tp", "pp", "vpp", "cp", "dp", "ep", "etp")]
        lines += [f"actor.sequence_parallel={'true' if self.tp > 1 else 'false'}", f"actor.recompute={self.recompute}"]
        lines += [f"actor.tokens_per_microbatch={TOKEN_BUDGETS[self.microbatch]}"]
        if self.overlap:
            lines += ["actor.overlap_grad_reduce=true", "actor.overlap_param_gather=true"]
            lines += [f"actor.ddp_bucket_size={OVERLAP_BUCKET_SIZE}"]
        return lines

    def __str__(self) -> str:
        axes = [f"{axis}{size}" for axis, size in vars(self).items() if isinstance(size, int) and size > 1]
        return " ".join([*axes, *["overlap"] * self.overlap, self.recompute, self.microbatch, self.model])


# fmt: off
LAYOUTS = [
    #             tp pp vpp cp dp ep etp recompute  microbatch model
    MixtureLayout(1, 1, 1, 1, 1, 1, 1, "none",      "large",  "qwen3_moe"),
    MixtureLayout(1, 2, 1, 1, 1, 1, 1, "selective", "small",  "qwen2_moe"),
    MixtureLayout(1, 2, 2, 1, 1, 1, 1, "full",      "single", "qwen3_moe"),
    MixtureLayout(1, 4, 1, 1, 1, 1, 1, "none",      "small",  "qwen3_moe mixed"),
    MixtureLayout(1, 1, 1, 1, 2, 1, 1, "full",      "small",  "mixtral"),
    MixtureLayout(1, 1, 1, 1, 2, 2, 1, "none",      "single", "qwen3_moe"),
    MixtureLayout(1, 1, 1, 1, 2, 2, 1, "full",      "large",  "qwen2_moe"),
    MixtureLayout(1, 1, 1, 1, 2, 2, 1, "none",      "small",  "qwen3_moe", overlap=True),
    MixtureLayout(1, 1, 1, 1, 4, 2, 1, "selective", "small",  "qwen3_moe"),
    MixtureLayout(1, 1, 1, 1, 4, 4, 1, "none",      "large",  "mixtral"),
    MixtureLayout(2, 1, 1, 1, 1, 1, 2, "none",      "small",  "qwen3_moe"),
    MixtureLayout(2, 1, 1, 1, 1, 2, 1, "selective", "single", "qwen2_moe"),
    MixtureLayout(2, 1, 1, 1, 1, 2, 1, "full",      "large",  "qwen3_moe mixed"),
    MixtureLayout(2, 1, 1, 1, 2, 1, 2, "none",      "small",  "mixtral"),
    MixtureLayout(2, 1, 1, 1, 2, 2, 1, "full",      "small",  "qwen3_moe"),
    MixtureLayout(2, 1, 1, 1, 2, 2, 2, "none",      "single", "qwen2_moe"),
    MixtureLayout(2, 1, 1, 1, 2, 4, 1, "none",      "large",  "qwen3_moe"),
    MixtureLayout(2, 1, 1, 1, 2, 2, 2, "full",      "small",  "qwen3_moe", overlap=True),
    MixtureLayout(4, 1, 1, 1, 1, 2, 1, "none",      "small",  "qwen3_moe"),
    MixtureLayout(4, 1, 1, 1, 1, 2, 2, "selective", "large",  "mixtral"),
    MixtureLayout(1, 2, 1, 1, 2, 2, 1, "full",      "small",  "qwen3_moe mixed"),
    MixtureLayout(1, 2, 2, 1, 2, 2, 1, "none",      "single", "mixtral"),
    MixtureLayout(2, 2, 1, 1, 1, 2, 1, "none",      "small",  "qwen2_moe"),
    MixtureLayout(2, 2, 2, 1, 1, 1, 2, "selective", "large",  "qwen3_moe"),
    MixtureLayout(1, 1, 1, 2, 1, 1, 1, "none",      "large",  "qwen3_moe"),
    MixtureLayout(1, 1, 1, 2, 1, 2, 1, "full",      "small",  "qwen3_moe"),
    MixtureLayout(1, 1, 1, 2, 2, 4, 1, "none",      "single", "qwen2_moe"),
    MixtureLayout(2, 1, 1, 2, 1, 2, 2, "none",      "small",  "qwen3_moe"),
    MixtureLayout(1, 2, 1, 2, 1, 2, 1, "selective", "small",  "qwen3_moe"),
]
# fmt: on
COLUMNS = ("tp", "pp", "vpp", "cp", "dp", "ep", "etp", "recompute", "model")


def meets(layout: MixtureLayout) -> set[Hashable]:
    """What a layout is in the table for: every size of an axis beside every size of the experts' axes, every model and
    way of recomputing, and overlaps."""
    values = {(column, getattr(layout, column)) for column in COLUMNS} | {("overlap", layout.overlap)}
    pairs = {frozenset(pair) for pair in combinations(values, 2) if {"ep", "etp"} & {name for name, _ in pair}}
    return {frozenset([value]) for value in values} | {
        pair for pair in pairs if not {"model", "recompute"} & {name for name, _ in pair}
    }


ON_A_PUSH = covering(LAYOUTS, meets)


def pieces_of(worker, pick: Callable[[torch.nn.Parameter], torch.Tensor]) -> dict[str, np.ndarray]:
    """What `pick` says of this rank's parameters, in the places that they have in HF tensors; NaN elsewhere."""
    from megatron_nft.families.registry import table_of
    from megatron_nft.weights.layouts import parts
    from tests.parallel.test_parity import every_shard

    found: dict[str, torch.Tensor] = {}
    table, place = table_of(worker.hf), worker.topology.place
    for name, parameter in every_shard(worker):
        rule, numbers = table.find(name)
        for hf_name, shape in rule.hf_shapes(numbers, place).items():
            found.setdefault(hf_name, torch.full(shape, torch.nan))
        for part in parts(rule, numbers, pick(parameter).detach().float(), place):
            part.copy_to(found[part.name])
    return {name: tensor.numpy() for name, tensor in found.items()}


def gathered_gradients(worker) -> dict[str, np.ndarray]:
    """Each rank has the summed gradient of its own share of a bucket only, the one that it has the optimizer for."""
    from megatron.core import parallel_state

    groups = {
        "buffers": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "expert_parallel_buffers": parallel_state.get_expert_data_parallel_group(),
    }
    before = []
    for chunk in worker.model:
        for kind, group in groups.items():
            for bucket in (bucket for buffer in getattr(chunk, kind) for bucket in buffer.buckets):
                before.append((bucket, bucket.grad_data.clone()))
                share = bucket.grad_data.chunk(dist.get_world_size(group))[dist.get_rank(group)].clone()
                dist.all_gather_into_tensor(bucket.grad_data, share, group=group)
    found = pieces_of(worker, lambda parameter: parameter.main_grad)
    for bucket, data in before:
        bucket.grad_data.copy_(data)
    return found
