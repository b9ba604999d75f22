"""A run's name, folder and seed."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Literal

from pydantic import Field

from megatron_nft.config.paths import PathText
from megatron_nft.config.section import Section

LARGEST_SEED = 2**32 - 1
"""numpy's generators take no other."""


class RunConfig(Section):
    """Whose files, where, and from which seed."""

    name: str = "nft"
    """Name of the run; its files go to `dir/name`."""
    dir: PathText = "runs"
    """Folder that holds all runs."""
    seed: int = Field(1, ge=0, le=LARGEST_SEED)
    """Seeds the prompt order, the sampling of every rollout and Megatron's generators."""
    umask: str = Field("", pattern="^(0?[0-7]{3})?$")
    """Permissions that the run's folder and files do not get, as the shell's umask: "077" for their owner alone, "027"
    for the group, too. Empty: the system's."""
    overwrite: Literal[False, True, "all"] = False
    """Replace an earlier run of the same name instead of going on from where it stopped. true: one that has saved
    nothing yet; "all": its checkpoints and its exported models are deleted, too."""

    def problems(self) -> Iterator[str]:
        """A name that leads elsewhere: run.overwrite would delete there."""
        odd = not self.name.isprintable() or PurePath(self.name).is_absolute() or set(self.name) & set("~$")
        if odd or any(part != part.strip() or part in ("", ".", "..") for part in self.name.split("/")):
            yield (
                f"run.name = {self.name!r} is no name of a folder in run.dir = {self.dir!r}; choose a plain name, and "
                "say with run.dir where runs are"
            )
