"""A run's name, folder and seed."""

from megatron_nft.config.section import Section


class RunConfig(Section):
    """Whose files, where, and from which seed."""

    name: str = "nft"
    """Name of the run; its files go to `dir/name`."""
    dir: str = "runs"
    """Folder that holds all runs."""
    seed: int = 1
    """Seeds the prompt order, the sampling of every rollout and Megatron's generators."""
    overwrite: bool = False
    """Replace an earlier run of the same name, its checkpoints too, instead of going on from where it stopped."""
