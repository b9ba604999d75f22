"""Whose a run folder is: an earlier run's files, and what becomes of them."""

import io

import pytest

from megatron_nft.config import Config, DataConfig, ModelConfig, RecipeError, RunConfig
from megatron_nft.observe.report import Report
from megatron_nft.run.folder import take_run_folder


@pytest.fixture
def make_config(tmp_path):
    def make(**run) -> Config:
        run = RunConfig(**{"name": "test", "dir": str(tmp_path / "runs")} | run)
        return Config(run=run, model=ModelConfig(path="/models/tiny"), data=DataConfig(train=["sums.jsonl"]))

    return make


def record(config):
    """A run of a step, as far as its folder sees it."""
    take_run_folder(config)
    report = Report(config, io.StringIO())
    with report.step(1):
        report.add({"nft/loss": 1.5})
    report.close("done")


def test_a_new_folder_is_taken_and_not_made(make_config):
    take_run_folder(make_config())
    assert not make_config().run_dir.exists()


def test_a_used_folder_is_refused_and_overwriting_touches_only_known_files(make_config):
    config = make_config()
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "checkpoint.pt").write_text("precious")
    (config.run_dir / "metrics.jsonl").write_text("old\n")
    with pytest.raises(RecipeError, match=r"already holds a run that can't .* set run.name .* or run.overwrite=true"):
        take_run_folder(config)
    record(make_config(overwrite=True))
    assert (config.run_dir / "checkpoint.pt").read_text() == "precious"
    assert "old" not in (config.run_dir / "metrics.jsonl").read_text()


def test_overwriting_removes_the_checkpoints_of_the_earlier_run(make_config):
    config = make_config()
    for name in ("step_2", "step_4", "step_6.partial", "mine"):
        (config.run_dir / "checkpoints" / name).mkdir(parents=True)
    (config.run_dir / "checkpoints" / "latest").symlink_to("step_4")
    record(make_config(overwrite=True))
    assert [p.name for p in (config.run_dir / "checkpoints").iterdir()] == ["mine"]


def test_without_a_checkpoint_only_the_same_recipe_begins_again(make_config):
    record(make_config())
    record(make_config())
    with pytest.raises(RecipeError, match="already holds a run"):
        take_run_folder(make_config(seed=2))
    (make_config().run_dir / "hf").mkdir()  # it has come to its end
    with pytest.raises(RecipeError, match="already holds a run"):
        take_run_folder(make_config())
