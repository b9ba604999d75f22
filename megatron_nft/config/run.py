"""A run's name, folder and seed."""

from pydantic import Field

from megatron_nft.config.section import Section


class RunConfig(Section):
    """Whose files, where, and from which seed."""

    name: str = "nft"
    """Name of the run; its files go to `dir/name`."""
    dir: str = "runs"
    """Folder that holds all runs."""
    seed: int = 1
    """Seeds the prompt order, the sampling of every rollout and Megatron's generators."""
    umask: str = Field("", pattern="^(0?[0-7]{3})?$")
    """Permissions that the run's folder and files do not get, as the shell's umask: "077" for their owner alone, "027"
    for the group, too. Empty: the system's."""
    overwrite: bool = False
    """Replace an earlier run of the same name, its checkpoints too, instead of going on from where it stopped."""
