"""A run's name, folder and seed."""

from collections.abc import Iterator
from pathlib import PurePath

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
    overwrite: bool = False
    """Replace an earlier run of the same name, its checkpoints too, instead of going on from where it stopped."""

    def problems(self) -> Iterator[str]:
        """A name that leads elsewhere: run.overwrite would delete there."""
        path = PurePath(self.name)
        leads_out = path.is_absolute() or ".." in path.parts or not path.parts
        if leads_out or self.name != self.name.strip() or set(self.name) & set("~$\0\n"):
            yield (
                f"run.name = {self.name!r} is no name of a folder in run.dir = {self.dir!r}; choose a plain name, and "
                "say with run.dir where runs are"
            )
