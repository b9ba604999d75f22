"""Who may read a run: run.umask, for all that this process and those it starts write, and for the run's folder itself.

Called by the command line before anything is written. Ranks and engines of a Ray that others have started have a mask
of their own; what they write lies in the run's folder, which is closed to whom this mask closes it.
"""

import os

from megatron_nft.config import Config


def keep_private(config: Config) -> None:
    """A folder that is there already gets the mask, too."""
    if not config.run.umask:
        return
    mask = int(config.run.umask, 8)
    os.umask(mask)
    if config.run_dir.is_dir():
        config.run_dir.chmod(config.run_dir.stat().st_mode & 0o777 & ~mask)
