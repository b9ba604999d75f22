"""Which model adapters belong to: a digest of its weights, however many files they lie in.

A model folder comes in, a line of text goes out. Ranks read a share each (actor/worker.py); checkpoint_tools reads all.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from megatron_nft.families.hf_config import is_megatron_folder
from megatron_nft.families.weight_files import StoredTensor, read_tensors

BLOCK_BYTES = 16 << 20


def digests(folder: Path, share: int = 0, shares: int = 1) -> dict[str, str]:
    """Of every tensor of an HF folder, or of every file of a Megatron checkpoint: SHA-256.

    Args:
        share: which of so many, of about as many bytes.

    Raises:
        ModelFolderError: the folder is not whole.
    """
    if is_megatron_folder(folder):
        files = sorted(folder.glob("*.distcp"))
        found = {file.name: StoredTensor(file, "", (), 0, file.stat().st_size) for file in files}
    else:
        found = read_tensors(folder)
    largest_first = sorted(found, key=lambda name: (found[name].start - found[name].end, name))
    return {name: _digest(found[name]) for name in largest_first[share::shares]}


def whole_digest(folder: Path, parts: Iterable[dict[str, str]]) -> str:
    """Of the folder, given the `digests` of all shares."""
    everything = {name: digest for part in parts for name, digest in part.items()}
    kind = "torch_dist" if is_megatron_folder(folder) else "hf"
    return f"{kind}:{hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()}"


def _digest(tensor: StoredTensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tensor.shape} ".encode())
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for at in range(tensor.start, tensor.end, BLOCK_BYTES):
            digest.update(file.read(min(BLOCK_BYTES, tensor.end - at)))
    return digest.hexdigest()
