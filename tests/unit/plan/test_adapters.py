"""The planner where adapters are trained: the recipes for one node fit, and the whole 32B model would not."""

import re
from pathlib import Path

import pytest

from megatron_nft.config import load_config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.lora import adapter_parameters
from megatron_nft.plan.disk import plan_disk
from megatron_nft.plan.hardware import load_machine
from megatron_nft.plan.planner import make_plan

RECIPE, SEVEN = "launch/recipes/nft_qwen2.5_32b_lora_1x8h100.toml", "launch/recipes/nft_qwen2.5_math_7b_1x8h100.toml"
"""Numbers of a 32B model's adapters of rank r on all modules are r times this."""
PER_RANK = 64 * (3 * 5120 + 5120 + 2 * 1024 + 2 * 5120 + 2 * (5120 + 27648) + 27648 + 5120)


def plan_of(recipe, folder, *overrides):
    config = load_config(recipe, [f"model.path={folder}", *overrides], checks_weights=False)
    return make_plan(config, read_hf_config(folder), load_machine("H100"))


@pytest.fixture(scope="module")
def adapted(models):
    return plan_of(RECIPE, models["32b"])


def test_32b_fits_on_one_node_with_adapters_and_not_without(adapted, models, tmp_path):
    assert adapted.fits and adapted.num_devices == 8
    (tmp_path / "whole.toml").write_text(re.sub(r"\[lora\][^[]*", "", Path(RECIPE).read_text()))
    whole = plan_of(tmp_path / "whole.toml", models["32b"])
    assert any("train: actor stage 0 needs" in problem for problem in whole.problems)
    (rank,) = adapted.ranks
    assert rank.frozen_elements == rank.elements and rank.buffer_elements < rank.elements / 50


def test_7b_fits_on_one_node_whole(models):
    plan = plan_of(SEVEN, models["math_7b"])
    assert plan.fits and plan.num_devices == 8 and plan.ranks[0].frozen_elements == 0


def test_gradients_optimizer_and_checkpoint_are_the_adapters(adapted):
    config, hf = adapted.config, adapted.hf
    numbers = sum(parameter.numel for parameter in adapter_parameters(hf, config.lora.adapters))
    assert numbers == config.lora.rank * PER_RANK
    assert plan_disk(config, hf).checkpoint == numbers * 14
    assert sum(adapted.ranks[0].shards) * config.actor.tp >= numbers  # A of cut outputs, B of cut inputs: on each rank


def test_what_a_sync_brings(models, adapted):
    def sync(plan):
        return next(stage for stage in plan.stages if stage.name == "sync")

    merged = plan_of(RECIPE, models["32b"], "lora.sync=merged")
    assert sync(adapted).parts["load"] < sync(merged).parts.get("load", 1e9)
    assert "engine weights" in adapted.memory.host_parts and "engine weights" not in merged.memory.host_parts


def test_frozen_weights_have_no_product_of_their_own_in_the_backward_pass(models):
    whole = plan_of(SEVEN, models["math_7b"])
    adapted = plan_of(SEVEN, models["math_7b"], "lora.rank=16")

    def products(plan):
        return next(stage for stage in plan.stages if stage.name == "train").parts["products"]

    assert products(adapted) / products(whole) == pytest.approx(2 / 3)
