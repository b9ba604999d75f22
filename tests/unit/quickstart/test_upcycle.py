"""The mixture that quickstart_moe.toml trains: the dense base's answers, from experts that differ."""

from pathlib import Path

import torch

from launch.quickstart.upcycle import DENSE, upcycle
from megatron_nft.config import load_config
from megatron_nft.families.hf_config import read_hf_config


def test_it_answers_as_the_dense_base_does(tmp_path):
    from transformers import AutoModelForCausalLM

    upcycle(DENSE, tmp_path / "one")
    upcycle(DENSE, tmp_path / "other")
    files = [sorted(p.read_bytes() for p in (tmp_path / name).iterdir()) for name in ("one", "other")]
    assert files[0] == files[1]
    tokens = torch.arange(2, 60)[None]
    dense, mixture = (AutoModelForCausalLM.from_pretrained(folder) for folder in (DENSE, tmp_path / "one"))
    with torch.no_grad():
        logprobs = [model(tokens).logits.log_softmax(-1) for model in (dense, mixture)]
    assert 1e-4 < (logprobs[0] - logprobs[1]).abs().max() < 0.5
    first, second = mixture.model.layers[0].mlp.experts.down_proj[:2]
    assert not torch.equal(first, second)


def test_its_recipe_is_the_quickstarts_but_for_the_layout(tmp_path):
    upcycle(DENSE, tmp_path / "base")
    recipe = load_config("launch/recipes/quickstart_moe.toml", [f"model.path={tmp_path / 'base'}"])
    assert read_hf_config(recipe.model.path).mixture.num_experts == 8
    assert (recipe.actor.dp, recipe.actor.ep, recipe.actor.world_size) == (2, 2, 2)
    assert Path("launch/quickstart/upcycle.py").name in Path("launch/recipes/quickstart_moe.toml").read_text()
    same = {"model": {"path"}, "actor": {"tp", "dp", "ep", "routing_replay"}, "run": {"name"}}
    dense = load_config("launch/recipes/quickstart.toml").model_dump()
    for section, settings in recipe.model_dump().items():
        assert {k: v for k, v in settings.items() if dense[section][k] != v}.keys() <= same.get(section, set())
