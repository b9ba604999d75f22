"""Is a folder a whole HF model? config.json, a tokenizer, and every weight file that its index names, to the last byte.

    python launch/whole_model.py FOLDER

Called by download_model.sh: a download that was cut off may leave a folder that looks like one. Reads the headers of
the weight files only. Exit status: 0, or 1 with what is missing.
"""

import sys
from pathlib import Path

from megatron_nft.data.vocabulary import VOCABULARY_FILES
from megatron_nft.families.family import ModelFolderError
from megatron_nft.families.weight_files import read_tensors


def whats_wrong(folder: Path) -> str:
    """Nothing: it is whole."""
    if not (folder / "config.json").is_file():
        return f"{folder} has no config.json, so it is not an HF model"
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        return f"{folder} has no tokenizer (none of {', '.join(VOCABULARY_FILES)})"
    try:
        read_tensors(folder)
    except ModelFolderError as error:
        if pickled := sorted(path.name for path in folder.glob("*.bin")):
            return f"{error}; {pickled[0]} is a pickle, which is not read: take a model with safetensors files"
        return str(error)
    return ""


if __name__ == "__main__":
    if wrong := whats_wrong(Path(sys.argv[1])):
        sys.exit(f"error: {wrong}")
