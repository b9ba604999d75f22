"""A second driver of a run that is under way touches nothing of it."""

import io
import os

from megatron_nft.config import load_config
from megatron_nft.observe.report import Report
from megatron_nft.run import checkpoint_folder, command_line
from megatron_nft.run.folder import run_folder

RECIPE = "launch/recipes/quickstart.toml"


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_driver_is_refused_and_deletes_nothing(tmp_path, capsys):
    """Three steps are recorded, and a checkpoint is half-written; then the same command, in all its forms."""
    settings = [f"run.dir={tmp_path}", "run.name=x"]
    config = load_config(RECIPE, settings)
    with run_folder(config, print):
        report = Report(config, io.StringIO())
        for step in (1, 2, 3):
            with report.step(step):
                report.add({"nft/loss": 0.1})
        (checkpoint_folder.begin(config.run_dir, 3) / "__0_0.distcp").write_bytes(b"x" * 1000)
        before = files(config.run_dir)
        for more in ([], ["run.overwrite=true"], ["run.overwrite=all"], ["checkpoint.resume=never"]):
            status = command_line.main(lambda run, stop: None, "train", "", [RECIPE, *settings, *more])
            said = capsys.readouterr()
            assert status == 2 and said.out == ""
            assert said.err.startswith(f"error: {config.run_dir} is in use by process {os.getpid()} on ")
        assert files(config.run_dir) == before
        with report.step(4):
            report.add({"nft/loss": 0.1})
        assert len((config.run_dir / "metrics.jsonl").read_text().splitlines()) == 4
