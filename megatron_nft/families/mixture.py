"""What mixtures of experts share: a Llama whose MLPs are many, of which a router gives each token a few.

A family's file says how its HF tensors are named and which keys of config.json it reads. The router's weights are a
softmax over all experts, of the chosen ones as they are or divided by their sum; its bias, noise and groups are not
supported, and keys that ask for them are refused (foreign_keys.py). The loss that balances the load is the recipe's.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_nft.families.config_json import Keys
from megatron_nft.families.family import HFConfig, Mixture, ModelFolderError
from megatron_nft.families.llama_like import HF, HF_MLP_NORM, MEGATRON, MLP, LlamaLike
from megatron_nft.families.rules import LOCAL, TRANSFORMER_ENGINE, ExpertRule, Rule, columns, rows, whole

COUNTS = ("num_experts", "num_local_experts")
"""Keys for the number of experts: of most hub folders, and of Mixtral and of transformers 5."""


@dataclass(frozen=True, kw_only=True)
class MixtureLike(LlamaLike):
    """See families/family.py, `Family`."""

    router: str = f"{HF}.mlp.gate.weight"
    """HF name of the router's matrix."""
    expert: str = f"{HF}.mlp.experts.{{expert}}"
    """HF name of an expert, less its matrices'."""
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Of an expert."""
    inner: str = "moe_intermediate_size"
    """Key of an expert's size."""
    counts: tuple[str, ...] = COUNTS
    """Keys for the number of experts that the family's configuration class reads."""
    normalizes: bool | None = None
    """Whether a token's weights add up to 1; None: norm_topk_prob says."""
    layer_keys: Set[str] = frozenset({"mlp_only_layers", "decoder_sparse_step"})
    """Keys of which layers have experts; none: all have."""
    has_shared_expert: bool = False

    @property
    def keys_read(self) -> Set[str]:
        shared = {"shared_expert_intermediate_size"} if self.has_shared_expert else set()
        return {*self.own_keys, *self.layer_keys, *shared, *COUNTS, "num_experts_per_tok", "norm_topk_prob", self.inner}

    def read(self, raw: dict[str, Any], file: Path) -> HFConfig:
        hf = super().read(raw, file)
        keys = Keys(raw, file, dict(self.defaults))
        mixture = Mixture(
            num_experts=self._num_experts(keys),
            experts_per_token=keys.count("num_experts_per_tok"),
            intermediate_size=keys.count(self.inner),
            normalizes_weights=keys.flag("norm_topk_prob") if self.normalizes is None else self.normalizes,
            shared_intermediate_size=keys.count("shared_expert_intermediate_size") if self.has_shared_expert else None,
            dense_layers=self._dense_layers(keys, hf.num_hidden_layers),
        )
        _check(keys, mixture)
        return replace(hf, mixture=mixture)

    def _num_experts(self, keys: Keys) -> int:
        given = {key: keys.count(key) for key in COUNTS if key in keys.raw}
        known = [key for key in self.counts if key in given]
        if not known:
            raise ModelFolderError(
                f"{keys.file}: has no {self.counts[0]}, the number of experts; take the config.json that was published "
                "with these weights"
            )
        for key, value in given.items():
            if value != given[known[0]]:
                keys.refuse(key, value, f"contradicts {known[0]} = {given[known[0]]}")
        return given[known[0]]

    def _dense_layers(self, keys: Keys, num_layers: int) -> tuple[int, ...]:
        if not self.layer_keys:
            return ()
        step, listed = keys.count("decoder_sparse_step"), keys.get("mlp_only_layers")
        listed = [] if listed is None else listed
        if not isinstance(listed, list) or not all(type(layer) is int for layer in listed):
            keys.refuse("mlp_only_layers", listed, "is not a list of layers' numbers")
        dense = tuple(layer for layer in range(num_layers) if layer in listed or (layer + 1) % step)
        if len(dense) == num_layers:
            key, value = ("decoder_sparse_step", step) if step > num_layers else ("mlp_only_layers", listed)
            keys.refuse(key, value, "leaves no layer with experts", "give the dense family's model_type")
        return dense

    def rules(self, hf: HFConfig) -> list[Rule]:
        assert hf.mixture is not None
        sparse = hf.sparse_layers if hf.mixture.dense_layers else None
        return [*self._dense_rules(hf), *_expert_rules(self, hf, sparse), *self._shared_rules(hf, sparse)]

    def _dense_rules(self, hf: HFConfig) -> list[Rule]:
        """Those of a dense model, its MLPs in dense layers only."""
        assert hf.mixture is not None
        found = []
        for rule in super().rules(hf):
            if rule.megatron.startswith(MLP) or rule.hf == HF_MLP_NORM:
                if not hf.mixture.dense_layers:
                    continue
                rule = replace(rule, layers=hf.mixture.dense_layers)
            found.append(rule)
        return found

    def _shared_rules(self, hf: HFConfig, sparse: tuple[int, ...] | None) -> Sequence[Rule]:
        assert hf.mixture is not None
        if (inner := hf.mixture.shared_intermediate_size) is None:
            return ()
        name, shared, hidden = f"{MLP}.shared_experts", f"{HF}.mlp.shared_expert", hf.hidden_size
        gate_up = tuple(f"{shared}.{matrix}.weight" for matrix in self.matrices[:2])
        down = (f"{shared}.{self.matrices[2]}.weight",)
        return (
            Rule(f"{name}.linear_fc1.weight", gate_up, rows(inner, inner, of=(hidden,)), layers=sparse),
            Rule(f"{name}.linear_fc2.weight", down, columns(hidden, inner), layers=sparse),
            Rule(f"{name}.gate_weight", (f"{shared}_gate.weight",), whole(1, hidden), layers=sparse),
        )

    def transformer_arguments(self, hf: HFConfig) -> dict[str, Any]:
        mixture = hf.mixture
        assert mixture is not None
        has_experts = [int(layer not in mixture.dense_layers) for layer in range(hf.num_hidden_layers)]
        return super().transformer_arguments(hf) | {
            "num_moe_experts": mixture.num_experts,
            "moe_ffn_hidden_size": mixture.intermediate_size,
            "moe_router_topk": mixture.experts_per_token,
            # A softmax over the chosen ones is one over all, divided by the sum of the chosen.
            "moe_router_pre_softmax": not mixture.normalizes_weights,
            "moe_shared_expert_intermediate_size": mixture.shared_intermediate_size,
            "moe_shared_expert_gate": mixture.shared_intermediate_size is not None,
            # Megatron gives each layer a key of its own in checkpoints wherever this is a list.
            "moe_layer_freq": has_experts if mixture.dense_layers else 1,
        }


def _expert_rules(family: MixtureLike, hf: HFConfig, sparse: tuple[int, ...] | None) -> list[Rule]:
    """The router's, and an expert's in both kinds of layers, with the norm before them by itself in both."""
    mixture = hf.mixture
    assert mixture is not None
    hidden, inner, router = hf.hidden_size, mixture.intermediate_size, whole(mixture.num_experts, hf.hidden_size)
    gate, up, down = (f"{family.expert}.{matrix}.weight" for matrix in family.matrices)
    table = [
        Rule(f"{MEGATRON}.pre_mlp_layernorm.weight", HF_MLP_NORM, whole(hidden), layers=sparse),
        Rule(f"{MLP}.router.weight", (family.router,), router, layers=sparse),
    ]
    gate_up, across = rows(inner, inner, of=(hidden,), axis="etp"), columns(hidden, inner, axis="etp")
    names = {
        LOCAL: f"{MLP}.experts.local_experts.{{slot}}.linear_fc{{number}}.weight",
        TRANSFORMER_ENGINE: f"{MLP}.experts.linear_fc{{number}}.weight{{slot}}",
    }
    for kind, name in names.items():
        for number, matrices, layout in ((1, (gate, up), gate_up), (2, (down,), across)):
            megatron = name.replace("{number}", str(number))
            table.append(ExpertRule(megatron, matrices, layout, kind, layers=sparse, num_experts=mixture.num_experts))
    return table


def _check(keys: Keys, mixture: Mixture) -> None:
    if mixture.experts_per_token > mixture.num_experts:
        why = f"is more than the {mixture.num_experts} experts"
        keys.refuse("num_experts_per_tok", mixture.experts_per_token, why)
    if mixture.experts_per_token == 1 and mixture.normalizes_weights:
        keys.refuse(
            "num_experts_per_tok", 1, "gives every token's only expert the weight 1, and the router no gradient",
            "take a model with more experts a token",
        )  # fmt: skip
