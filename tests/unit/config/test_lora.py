"""[lora]: what its settings mean, and which are refused."""

import shutil

import pytest

from megatron_nft.config import RecipeError, load_config, to_toml

RECIPE = "launch/recipes/quickstart.toml"


def load(*overrides):
    return load_config(RECIPE, list(overrides))


def test_off_unless_there_is_a_rank():
    config = load()
    assert config.lora.adapters is None and not config.syncs_adapter and not config.base_is_reference


def test_the_scale():
    assert load("lora.rank=8").lora.adapters.scale == 2.0
    assert load("lora.rank=8", "lora.alpha=4").lora.adapters.scale == 0.5
    assert load("lora.rank=16", "lora.alpha=4", "lora.rslora=true").lora.adapters.scale == 1.0


@pytest.mark.parametrize(
    ("overrides", "alone"),
    [
        (["lora.rank=8"], False),  # a CPU
        (["lora.rank=8", "cluster.device=cuda"], True),
        (["lora.rank=600", "cluster.device=cuda"], False),  # vLLM takes 512
        (["lora.rank=8", "lora.sync=adapter"], True),
        (["lora.rank=8", "cluster.device=cuda", "lora.sync=merged"], False),
        (["cluster.device=cuda"], False),
    ],
)
def test_what_goes_to_the_engines(overrides, alone):
    assert load(*overrides).syncs_adapter == alone


def test_the_engines_room():
    assert [load(f"lora.rank={rank}").lora.engine_rank for rank in (1, 6, 8, 9, 300)] == [1, 8, 8, 16, 320]


def test_the_reference_is_the_model_without_adapters():
    path = load().model.path
    assert load("lora.rank=8", "algorithm.kl_weight=0.1").base_is_reference
    assert load("lora.rank=8", "algorithm.kl_weight=0.1", f"model.reference={path}/").base_is_reference
    with pytest.raises(RecipeError, match=r"kl_weight = 0.1 needs a reference model"):
        load("algorithm.kl_weight=0.1")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["lora.alpha=8"], r"lora.alpha = 8.0 needs adapters"),
        (["lora.dropout=0.1"], r"lora.dropout = 0.1 needs adapters"),
        (["lora.sync=adapter"], r"lora.sync = 'adapter' needs adapters; set lora.rank"),
        (['lora.targets=["linear_qkv"]'], r"lora.targets = \['linear_qkv'\] needs adapters"),
        (["lora.rslora=true"], r"lora.rslora = True needs adapters"),
        (["lora.adapter=a"], r"lora.adapter = 'a' needs adapters"),
        (["lora.rank=8", "lora.use_dora=true"], r"lora.use_dora is not supported"),
        (["lora.rank=8", 'lora.init_lora_weights="pissa"'], r"lora.init_lora_weights is not supported"),
        (["lora.rank=8", 'lora.targets=["linear_qkv", "linear_qkv"]'], r"one comes twice"),
        (["lora.rank=8", 'lora.targets=["q_proj"]'], r"q_proj.*linear_qkv"),
        (["lora.rank=8", "lora.targets=[]"], r"lora.targets"),
        (["lora.rank=600", "lora.sync=adapter"], r"up to rank 512"),
        (["lora.rank=8", "cluster.device=cuda", "actor.gradient_accumulation_fusion=true"], r"leave it out"),
    ],
)
def test_refused(overrides, why):
    with pytest.raises(RecipeError, match=why):
        load(*overrides)


@pytest.mark.parametrize("overrides", [[], ["lora.rank=8"]])
def test_a_checkpoint_of_adapters_is_no_model(tmp_path, overrides):
    checkpoint, base = tmp_path / "step_4", load().model.path
    shutil.copytree(base, checkpoint / "hf")
    (checkpoint / "metadata.json").write_text("{}")
    whole, adapters = to_toml(load()), to_toml(load("lora.rank=8"))
    (checkpoint / "recipe.toml").write_text(adapters)
    with pytest.raises(RecipeError, match=r"has adapters of .* only \(lora.rank = 8\).*checkpoint.resume.*--base"):
        load(f"model.path={checkpoint}", *overrides)
    (checkpoint / "recipe.toml").write_text(whole)
    assert load(f"model.path={checkpoint}", *overrides).model.is_megatron
