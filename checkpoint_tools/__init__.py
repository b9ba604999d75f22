"""HF folders <-> Megatron checkpoints. `checkpoint_tools.inspect` is another name of `checkpoint_tools.show`."""

from pathlib import Path

import megatron_nft  # noqa: F401 - it says in a line what a Python without the packages lacks

# A file inspect.py in this folder would hide the standard library's from every tool here that is run as a file.
__path__.append(str(Path(__file__).parent / "also"))
