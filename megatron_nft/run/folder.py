"""A run's folder: whether this run may have it, and what an earlier run of its name left there.

A recipe comes in; the folder is this run's, or a RecipeError says why not. Called by run.py before anything starts.
What is written into it: observe/report.py; its checkpoints: checkpoint_folder.py.
"""

import shutil

from megatron_nft.config import Config, RecipeError, to_toml
from megatron_nft.observe.report import FILES
from megatron_nft.run.checkpoint_folder import delete_all, published


def take_run_folder(config: Config) -> None:
    """Empties the folder of what an earlier run wrote, with run.overwrite; else checks that this run may go on there.

    Raises:
        RecipeError: it holds a run that can't be gone on with.
    """
    folder = config.run_dir
    if config.run.overwrite:
        delete_all(folder)
        shutil.rmtree(folder / "logs", ignore_errors=True)
        for name in FILES:  # what others put there stays
            (folder / name).unlink(missing_ok=True)
        (folder / "wandb" / "id").unlink(missing_ok=True)  # the new run is another one there, too
    elif folder.is_dir() and any(folder.iterdir()) and not _may_go_on(config):
        raise RecipeError(
            f"{folder} already holds a run that can't be gone on with; set run.name to a new name, or "
            "run.overwrite=true to replace its files"
        )


def _may_go_on(config: Config) -> bool:
    """With a checkpoint, or, before the first one, from the beginning: if it is this very run, and not at its end."""
    folder = config.run_dir
    if config.checkpoint.resume == "never":
        return False
    if published(folder):
        return True
    recipe = folder / "recipe.toml"
    is_this_run = recipe.is_file() and _but_overwrite(recipe.read_text(encoding="utf-8")) == _but_overwrite(
        to_toml(config)
    )
    return is_this_run and not (folder / "hf").exists()


def _but_overwrite(recipe: str) -> list[str]:
    """A recipe's lines. A run that was begun anew goes on with run.overwrite=false, else it would lose what it has."""
    return [line for line in recipe.splitlines() if not line.startswith("overwrite = ")]
