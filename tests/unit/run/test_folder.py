"""Whose a run folder is: an earlier run's files, what becomes of them, and what is refused with its reason."""

import io
import os
import tempfile
import time
from pathlib import Path

import pytest

from megatron_nft.actor.manifest import MANIFEST
from megatron_nft.config import Config, DataConfig, ModelConfig, OptimizerConfig, RecipeError, RunConfig, TrainConfig
from megatron_nft.observe.owner import FolderInUse
from megatron_nft.observe.report import Report
from megatron_nft.run.folder import ending_of, run_folder


@pytest.fixture
def make_config(tmp_path):
    def make(rate=1e-6, steps=4, **run) -> Config:
        run = RunConfig(**{"name": "test", "dir": str(tmp_path / "runs")} | run)
        return Config(
            run=run,
            model=ModelConfig(path="/models/tiny"),
            data=DataConfig(train=["sums.jsonl"]),
            optimizer=OptimizerConfig(learning_rate=rate),
            train=TrainConfig(steps=steps),
        )

    return make


def record(config, num_steps=1):
    """A run of so many steps, as far as its folder sees it; what it said of the folder."""
    said = []
    with run_folder(config, said.append):
        report = Report(config, io.StringIO())
        for step in range(1, num_steps + 1):
            with report.step(step):
                report.add({"nft/loss": 1.5})
        report.close("done")
    return said


def save(config, step, *, at=None):
    """A checkpoint of that step."""
    folder = config.run_dir / "checkpoints" / f"step_{step}"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    if at is not None:
        os.utime(folder / MANIFEST, (at, at))


def export(config, name="hf"):
    (config.run_dir / name).mkdir(parents=True)
    (config.run_dir / name / "config.json").write_text("{}")


def lines(config):
    return (config.run_dir / "metrics.jsonl").read_text().splitlines()


# --- what never blocks


def test_others_files_stay_whatever_becomes_of_the_run(make_config):
    config = make_config()
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "notes.txt").write_text("precious")
    record(config)
    record(make_config(overwrite=True))
    save(config, 1)
    record(make_config(overwrite="all"))
    assert (config.run_dir / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("recipe", ["", "[run", None])
def test_a_start_that_came_to_nothing_does_not_block(make_config, recipe):
    """Nor does what a full disk has left of its recipe."""
    with run_folder(make_config(), print):
        Report(make_config(), io.StringIO()).close("failed: data.train is wrong")
    path = make_config().run_dir / "recipe.toml"
    path.unlink() if recipe is None else path.write_text(recipe)
    assert record(make_config(rate=2e-6)) == []
    assert len(lines(make_config())) == 1


def test_settings_may_change_before_the_first_checkpoint_and_are_listed(make_config):
    record(make_config(), num_steps=3)
    (said,) = record(make_config(rate=2e-6, steps=9))
    assert "has 3 steps, of which no checkpoint was saved: the run begins again; changed since: " in said
    assert "optimizer.learning_rate 1e-06 -> 2e-06" in said and "train.steps 4 -> 9" in said and "run." not in said
    assert len(lines(make_config())) == 1, "the steps are another run's"


def test_the_same_settings_keep_the_evaluation_at_step_0(make_config):
    config = make_config()
    with run_folder(config, print):
        report = Report(config, io.StringIO())
        report.add_evaluation(0, {"eval/greedy_accuracy": 0.5})
        report.close("interrupted")
    assert record(config) == []
    assert '"evaluation"' in lines(config)[0]


def test_with_a_checkpoint_it_goes_on(make_config):
    config = make_config()
    record(config, num_steps=3)
    save(config, 2)
    assert record(make_config(rate=2e-6)) == []
    assert len(lines(config)) == 4, "the checkpoint says which of them stay"


# --- what is refused, and why


def test_another_process_of_the_same_run_is_refused(make_config):
    config = make_config()
    with run_folder(config, print), pytest.raises(FolderInUse, match=f"in use by process {os.getpid()} on "):
        record(config)
    record(config)


def test_overwrite_deletes_what_was_saved_only_with_the_stronger_word(make_config):
    config = make_config()
    record(config)
    for step in (2, 4):
        save(config, step)
    (config.run_dir / "checkpoints" / "step_6.partial").mkdir()
    (config.run_dir / "checkpoints" / "mine").mkdir()
    (config.run_dir / "checkpoints" / "latest").symlink_to("step_4")
    export(config, "hf_step_2")
    with pytest.raises(
        RecipeError, match=r'has step_4, step_2, hf_step_2 \(the newest .*run.overwrite="all" to delete'
    ):
        record(make_config(overwrite=True))
    assert (config.run_dir / "checkpoints" / "latest").exists() and len(lines(config)) == 1
    record(make_config(overwrite="all"), num_steps=2)
    assert [p.name for p in (config.run_dir / "checkpoints").iterdir()] == ["mine"]
    assert not (config.run_dir / "hf_step_2").exists() and len(lines(config)) == 2


def test_overwrite_replaces_a_run_that_has_saved_nothing(make_config):
    record(make_config(), num_steps=3)
    (make_config().run_dir / "checkpoints" / "step_2.partial").mkdir(parents=True)
    assert record(make_config(rate=2e-6, overwrite=True)) == []
    assert len(lines(make_config())) == 1


def test_resume_never_is_refused_with_what_is_there(make_config):
    save(make_config(), 2)
    config = make_config()
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"resume": "never"})})
    with pytest.raises(RecipeError, match=r'"never", and .*test has step_2 .* set run.name .* run.overwrite="all"'):
        record(config)


def test_exported_models_of_other_settings_are_not_mixed_with_new_ones(make_config):
    record(make_config(), num_steps=3)
    export(make_config(), "hf_step_2")
    assert len(record(make_config())) == 1
    with pytest.raises(RecipeError, match=r"has hf_step_2 .*learning_rate 1e-06 -> 2e-06; set run.name"):
        record(make_config(rate=2e-6))


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl"])
@pytest.mark.parametrize("text", ["old\n", '{"loss": 1}\n', "[1]\n", "\xff\n"])
def test_records_that_are_no_runs_are_refused(make_config, name, text):
    config = make_config()
    config.run_dir.mkdir(parents=True)
    (config.run_dir / name).write_text(text, encoding="latin-1")
    with pytest.raises(RecipeError, match=r"that is no run's \(.*move it away, or set run.name"):
        record(config)


@pytest.mark.parametrize("name", ["logs", "checkpoints", "batches"])
def test_a_file_where_a_folder_belongs_is_refused(make_config, name):
    config = make_config()
    config.run_dir.mkdir(parents=True)
    (config.run_dir / name).write_text("")
    with pytest.raises(RecipeError, match=f"{name} is no folder, and a run .* move it away"):
        record(config)


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user's rights")
def test_a_log_folder_of_another_user_is_refused(make_config):
    with tempfile.TemporaryDirectory(dir="/tmp") as top:  # pytest's own is for one user's eyes
        Path(top).chmod(0o777)
        config = make_config(dir=top)
        (config.run_dir / "logs").mkdir(parents=True)
        config.run_dir.chmod(0o777)
        told_out, told_in = os.pipe()
        if (pid := os.fork()) == 0:
            os.setuid(65534)
            try:
                record(config)
            except BaseException as error:
                os.write(told_in, str(error).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        assert b"logs can't be written by this user, and a run" in os.read(told_out, 1 << 16)


# --- a run that is done


def finish(config, steps=4):
    record(config, num_steps=steps)
    save(config, steps, at=time.time() - 10)
    export(config)


def test_a_run_that_is_done_says_so_and_what_to_type(make_config):
    finish(make_config())
    said = ending_of(make_config())
    assert said.splitlines()[0] == f"{make_config().run_dir} is done: 4 of 4 steps"
    assert (
        "train.steps=8" in said and "run.name=NAME" in said and "run.overwrite=all   (deletes its checkpoints" in said
    )
    assert ending_of(make_config(overwrite="all")) is None
    assert ending_of(make_config(steps=5)) is None, "more is to be done"


def test_what_is_missing_at_its_end_is_done_yet(make_config):
    config = make_config()
    finish(config)
    evaluated = config.model_copy(update={"data": DataConfig(train=["sums.jsonl"], held_out=["more.jsonl"])})
    assert ending_of(evaluated) is None, "the last evaluation"
    os.utime(config.run_dir / "hf", (1e9, 1e9))
    assert ending_of(config) is None, "the model is of an earlier end"


def test_a_run_that_kept_no_checkpoint_is_done_too(make_config):
    config = make_config()
    record(config, num_steps=4)
    export(config)
    assert "no: it has kept no checkpoint" in ending_of(config)
    assert record(config) == []
    with pytest.raises(RecipeError, match=r"has hf .* changed since: train.steps 4 -> 8; set run.name"):
        record(make_config(steps=8))
