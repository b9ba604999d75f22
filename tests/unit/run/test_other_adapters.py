"""A checkpoint with other adapters than the recipe's is refused by the recipe beside it, before any process starts."""

import shutil

import pytest

from megatron_nft.actor.manifest import MANIFEST, manifest_text, record
from megatron_nft.config import RecipeError, load_config, to_toml
from megatron_nft.run.checkpoints import checkpoints_to_resume


@pytest.mark.parametrize(
    ("saved", "now", "why"),
    [
        (["lora.rank=8"], ["lora.rank=4"], r"has adapters with lora.rank = 8, now it is 4"),
        (["lora.rank=8"], ["lora.rank=8", "lora.alpha=8"], r"has adapters with lora.alpha = 16.0, now it is 8.0"),
        (["lora.rank=8"], [], r"has adapters of tests/assets/quickstart/model only, and lora.rank is 0"),
        ([], ["lora.rank=8"], r"has the whole model, and lora.rank = 8"),
        (["lora.rank=8"], ["lora.rank=8", "lora.dropout=0.1"], None),
        ([], [], None),
    ],
)
def test_other_adapters_are_refused_before_anything_starts(tmp_path, saved, now, why):
    recipe = "launch/recipes/quickstart.toml"
    folder = tmp_path / "quickstart" / "checkpoints" / "step_2"
    (folder / "hf").mkdir(parents=True)
    shutil.copy("tests/assets/quickstart/model/config.json", folder / "hf")
    (folder / "recipe.toml").write_text(to_toml(load_config(recipe, saved)))
    (folder / "run.json").write_text("{}")
    names = ("hf/config.json", "recipe.toml", "run.json")
    (folder / MANIFEST).write_text(manifest_text({name: record(folder / name) for name in names}))
    config = load_config(recipe, [f"run.dir={tmp_path}", *now])
    if why is None:
        assert checkpoints_to_resume(config) == [folder]
        return
    with pytest.raises(RecipeError, match=why):
        checkpoints_to_resume(config)
