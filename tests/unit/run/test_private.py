"""run.umask: on what is written from now on, and on a folder that is there."""

import os
import stat

import pytest

from megatron_nft.config import RecipeError, load_config
from megatron_nft.run.private import keep_private


@pytest.fixture
def config(tmp_path):
    def load(*overrides):
        return load_config("launch/recipes/quickstart.toml", [f"run.dir={tmp_path}", *overrides])

    mask = os.umask(0o022)
    yield load
    os.umask(mask)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [("077", 0o700, 0o600), ("0027", 0o750, 0o640), ("", 0o755, 0o644)]
)
def test_what_is_written_and_what_was(tmp_path, config, umask, folder, file):
    config = config(f'run.umask="{umask}"')
    config.run_dir.mkdir()
    assert mode(config.run_dir) == 0o755
    keep_private(config)
    (config.run_dir / "metrics.jsonl").touch()
    (config.run_dir / "logs").mkdir()
    assert (mode(config.run_dir), mode(config.run_dir / "logs")) == (folder, folder)
    assert mode(config.run_dir / "metrics.jsonl") == file


def test_as_one_types_it(config):
    assert config("run.umask=077").run.umask == "077"
    with pytest.raises(RecipeError, match=r"run\.umask"):
        config("run.umask=rwx")
