"""A model's adapters (LoRA): which parameters they have, under PEFT's names, and how ranks share them.

The family's own table comes in, a table of the same kind goes out: of each adapted linear module B A, with A of shape
(r, in) and B of shape (out, r). Modules that Megatron fuses (queries, keys and values; gate and up) keep the A of each,
one below the other, as PEFT has them: what is trained here is what `peft` would train. No heavy imports.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from megatron_nft.families.family import HFConfig
from megatron_nft.families.parameters import Parameter
from megatron_nft.families.registry import table_of
from megatron_nft.families.rules import Layout, Rule, Table

TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""Megatron's names of the linear modules that may have an adapter."""
A, B = "lora_a", "lora_b"
"""Names of an adapter's two parameters in Megatron's module."""
PEFT = {A: "lora_A", B: "lora_B"}
PREFIX = "base_model.model."
"""Of all names in a PEFT folder."""


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """What a run's adapters are: all that a checkpoint and a PEFT folder must agree on."""

    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Of B A."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@lru_cache(maxsize=64)
def adapter_table(hf: HFConfig, adapters: Adapters) -> Table:
    """The rules of a model's adapters."""
    wanted = {f"{target}.weight" for target in adapters.targets}
    bases = [rule for rule in table_of(hf) if ".".join(rule.megatron.rsplit(".", 2)[-2:]) in wanted]
    return Table(hf.model_type, [rule for base in bases for rule in _rules(base, adapters.rank)])


def adapter_parameters(hf: HFConfig, adapters: Adapters) -> list[Parameter]:
    """All of a model's, layer by layer, as a checkpoint has them."""
    return [
        Parameter(rule.megatron.replace("{layer}.", ""), rule, {"layer": layer}, ((layer, hf.num_hidden_layers),))
        for layer in range(hf.num_hidden_layers)
        for rule in adapter_table(hf, adapters)
    ]


def adapter_shapes(hf: HFConfig, adapters: Adapters) -> dict[str, tuple[int, ...]]:
    """PEFT's name -> shape of every tensor."""
    return {n: shape for parameter in adapter_parameters(hf, adapters) for n, shape in parameter.hf_shapes.items()}


def is_adapter(name: str) -> bool:
    """Whether a Megatron parameter is an adapter's."""
    return name.rpartition(".")[2] in (A, B)


def peft_config(hf: HFConfig, adapters: Adapters, base: str, dropout: float = 0.0) -> dict[str, Any]:
    """adapter_config.json.

    Args:
        base: where the model's folder is.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": dropout,
        "use_rslora": adapters.rslora,
        "target_modules": peft_targets(hf, adapters),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def peft_targets(hf: HFConfig, adapters: Adapters) -> list[str]:
    """PEFT's names of the modules: q_proj, k_proj ..."""
    names = [name for rule in adapter_table(hf, adapters) for name in rule.hf]
    return list(dict.fromkeys(name.split(".")[-3] for name in names))


def _rules(base: Rule, rank: int) -> Iterator[Rule]:
    layout, module = base.layout, base.megatron.removesuffix(".weight")
    rows = (rank,) * len(base.hf)
    if layout.dim == 1:  # what comes in is cut: so is A
        a, b = replace(layout, rows=rows), Layout(rows=layout.rows, rest=(rank,))
    else:
        a, b = Layout(rows=rows, rest=layout.rest), replace(layout, rest=(rank,))
    for part, of_part in ((A, a), (B, b)):
        yield replace(base, megatron=f"{module}.{part}", hf=_peft_names(base.hf, part), layout=of_part)


def _peft_names(hf: Sequence[str], part: str) -> tuple[str, ...]:
    return tuple(f"{PREFIX}{name.removesuffix('.weight')}.{PEFT[part]}.weight" for name in hf)
