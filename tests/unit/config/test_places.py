"""Names and paths of a recipe: ~ is the home everywhere, and a run's name stays in run.dir."""

import shutil

import pytest

from megatron_nft.config import RecipeError, load_config

RECIPE = "launch/recipes/quickstart.toml"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_is_found_in_any_path(home):
    (home / "model").symlink_to(load_config(RECIPE).model.hf_folder.resolve())
    places = ["run.dir=~/runs", "model.path=~/model", "model.reference=~/model", 'data.train=["~/a.parquet", "b"]']
    config = load_config(
        RECIPE, [*places, 'data.held_out=["~/c.jsonl"]', "checkpoint.resume=~/runs/x/checkpoints/step_1"]
    )
    assert config.run_dir == home / "runs" / "quickstart"
    assert (config.model.path, config.model.reference) == (str(home / "model"),) * 2
    assert config.data.train == [str(home / "a.parquet"), "b"] and config.data.held_out == [str(home / "c.jsonl")]
    assert config.checkpoint.resume == str(home / "runs/x/checkpoints/step_1")
    shutil.copy(RECIPE, home / "r.toml")
    assert load_config("~/r.toml").run.name == "quickstart"


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/tmp/x", "~/x", "", ".", "a//b", "a/", " ", "a\nb"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(RecipeError, match=r"run.name = .* is no name of a folder in run.dir"):
        load_config(RECIPE, [f"run.name={name!r}" if "\n" not in name else 'run.name="a\\nb"'])


def test_a_name_may_be_of_several_folders():
    assert load_config(RECIPE, ["run.name=sweep/lr_1e-6"]).run.name == "sweep/lr_1e-6"


def test_overwrite_has_two_words():
    assert load_config(RECIPE).run.overwrite is False, "the recipe that all begin with deletes nothing"
    assert load_config(RECIPE, ["run.overwrite=true"]).run.overwrite is True
    assert load_config(RECIPE, ["run.overwrite=all"]).run.overwrite == "all"
    with pytest.raises(RecipeError, match=r"run.overwrite"):
        load_config(RECIPE, ["run.overwrite=yes please"])
