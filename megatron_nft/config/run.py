"""A run's name, folder and seed."""

from pathlib import PurePath
from typing import Literal

from pydantic import field_validator

from megatron_nft.config.section import PathText, Section


class RunConfig(Section):
    """Whose files, where, and from which seed."""

    name: str = "nft"
    """Name of the run; its files go to `dir/name`."""
    dir: PathText = "runs"
    """Folder that holds all runs."""
    seed: int = 1
    """Seeds the prompt order, the sampling of every rollout and Megatron's generators."""
    overwrite: Literal[False, True, "all"] = False
    """Replace an earlier run of the same name instead of going on from where it stopped. true: one that has saved
    nothing yet; "all": its checkpoints and its exported models are deleted, too."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        parts = name.split("/")
        odd = not name.isprintable() or PurePath(name).is_absolute() or name.startswith("~")
        if odd or any(part.strip() in ("", ".", "..") for part in parts):
            raise ValueError(
                "the name of a folder in run.dir is meant, without '..'; another place is run.dir's to say"
            )
        return name
