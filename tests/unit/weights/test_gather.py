"""Ranks write side by side what they own: every place of every tensor once, with experts on axes of their own, too."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from megatron_nft.families.family import Mixture
from megatron_nft.families.registry import table_of
from megatron_nft.families.rules import AxisPlace, along
from megatron_nft.weights.gather import place_shards
from megatron_nft.weights.layouts import to_shard
from megatron_nft.weights.plan import plan_weights
from tests.unit.families.test_rules import HF

EXPERTS = 4


MIXTURE = table_of(
    replace(
        HF, model_type="qwen3_moe",
        mixture=Mixture(num_experts=EXPERTS, experts_per_token=2, intermediate_size=8, normalizes_weights=True),
    )
)  # fmt: skip

DENSE_NAMES = [
    "embedding.word_embeddings.weight",
    *(f"decoder.layers.{layer}.{name}" for layer in range(2) for name in (
        "input_layernorm.weight", "self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias",
        "self_attention.linear_proj.weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight",
    )),
]  # fmt: skip


def places_of(tp, etp, ep, *, ranks):
    """Tensor-parallel ranks within data-parallel ones, and etp within ep within expert-data-parallel ones."""
    return [
        (AxisPlace("tp", r % tp, tp), AxisPlace("dp", r // tp, ranks // tp), AxisPlace("etp", r % etp, etp),
         AxisPlace("ep", r // etp % ep, ep), AxisPlace("edp", r // (etp * ep), ranks // (etp * ep)))
        for r in range(ranks)
    ]  # fmt: skip


def mixture_names(ep):
    """Parameters of a rank of the mixture, one of ep expert-parallel ones."""
    slots = [f"decoder.layers.0.mlp.experts.local_experts.{slot}" for slot in range(EXPERTS // ep)]
    experts = [f"{slot}.linear_fc{number}.weight" for slot in slots for number in (1, 2)]
    return [*(name for name in DENSE_NAMES if ".mlp." not in name), *experts]


def shards_at(place, table, names, hf_tensors):
    """What a rank at `place` holds, cut from HF tensors, which are made as they are asked for."""
    found = []
    for name in names:
        rule, numbers = table.find(name)
        for hf_name, shape in rule.hf_shapes(numbers, place).items():
            hf_tensors.setdefault(hf_name, torch.randn(shape))
        sources = [hf_tensors[hf_name] for hf_name in rule.hf_shapes(numbers, place)]
        found.append((name, to_shard(rule, sources, place)))
    return found


def check(table, places, names_at):
    """All ranks write; the tensors of the plan are whole, and no place is written twice."""
    hf_tensors = {}
    held = [shards_at(place, table, names_at(place), hf_tensors) for place in places]
    plans = [plan_weights(s, table, places=places, dtype=torch.float32, bucket_bytes=1 << 12) for s in held]
    assert {name for bucket in plans[0].buckets for name in bucket.tensors} == set(hf_tensors)
    assert all(plan.hf_names == plans[0].hf_names for plan in plans), "the same on every rank"
    for index, bucket in enumerate(plans[0].buckets):
        written = {name: torch.full(spec.shape, torch.nan) for name, spec in bucket.tensors.items()}
        for plan, place in zip(plans, places, strict=True):
            before = {name: tensor.clone() for name, tensor in written.items()}
            fresh = {name: torch.full_like(tensor, torch.nan) for name, tensor in written.items()}
            place_shards(plan.buckets[index], fresh, place)
            for name, tensor in fresh.items():
                assert (tensor.isnan() | before[name].isnan()).all(), f"{name} is written twice"
                written[name] = torch.where(tensor.isnan(), before[name], tensor)
        assert all(torch.equal(tensor, hf_tensors[name]) for name, tensor in written.items())
    return plans


def owns(plan, place):
    return any(shard.rule.is_owned_at(place) for bucket in plan.buckets for shard in bucket.shards)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_tensor_parallel_ranks_fill_each_tensor_once(tp):
    check(table_of(HF), along("tp", tp), lambda place: DENSE_NAMES)


def test_replicas_write_nothing():
    places = [
        (AxisPlace("tp", tp, 2), AxisPlace("cp", cp, 2), AxisPlace("dp", dp, 2))
        for dp, cp, tp in product(range(2), repeat=3)
    ]
    plans = check(table_of(HF), places, lambda place: DENSE_NAMES)
    owners = [place for plan, place in zip(plans, places, strict=True) if owns(plan, place)]
    assert owners == places[:2], "the tensor-parallel ranks of the first replica send"


@pytest.mark.parametrize(("tp", "etp", "ep"), [(1, 1, 2), (1, 1, 4), (2, 1, 4), (2, 2, 2), (1, 2, 2)])
def test_experts_are_sent_once(tp, etp, ep):
    plans = check(MIXTURE, places := places_of(tp, etp, ep, ranks=8), lambda place: mixture_names(ep))
    senders = [owns(plan, place) for plan, place in zip(plans, places, strict=True)]
    assert senders == [rank < max(tp, etp * ep) for rank in range(8)]
    down = {f"model.layers.0.mlp.experts.{expert}.down_proj.weight" for expert in range(EXPERTS)}
    assert down <= set(plans[0].hf_names)


def test_another_models_parameter_is_refused():
    with pytest.raises(KeyError, match=r"no rule for parameter .*router"):
        plan_weights(
            [("decoder.layers.0.mlp.router.weight", torch.zeros(4, 16))], table_of(replace(HF, qkv_bias=False)),
            places=[()], dtype=torch.float32, bucket_bytes=None,
        )  # fmt: skip
