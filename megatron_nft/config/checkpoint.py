"""A run's checkpoints."""

from pydantic import Field

from megatron_nft.config.paths import PathText
from megatron_nft.config.section import Section


class CheckpointConfig(Section):
    """What a run keeps, so as to go on."""

    every: int = Field(10, ge=0)
    """Save everything that a run needs to go on, every so many steps and after the last. 0: never."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints that stay; older ones are deleted once a new one is whole."""
    keep_every: int = Field(0, ge=0)
    """Those of every so many steps stay, too. 0: none."""
    resume: PathText = "auto"
    """"auto": go on from the newest whole checkpoint of this run's folder, if there is one; "never"; or the folder of
    another run's checkpoint to begin from, until this run has its own."""
    in_background: bool = True
    """Write while training goes on, which waits for a copy in host memory only. false: wait for the disk."""
