"""Which model a folder holds: a digest of every byte that an answer depends on. Called by evaluate.py.

Weights, config.json, generation_config.json (where an answer ends) and the tokenizer count; what else lies in a folder,
such as an optimizer's state, doesn't. A large model is read once: its files' digests are kept beside their sizes and
times, and a file that has both unchanged isn't read again.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

FILES = (
    "*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "tekken.json",
    "chat_template*", "preprocessor_config.json",
)  # fmt: skip
READERS = 4
"""Files read at a time: hashing one takes a second a GB, and leaves Python's lock."""

Kept = dict[str, list[int | str]]
"""File -> size, times and inode as `_state` gives them, and the digest."""


def model_digest(folder: Path, kept: Path | None = None) -> str:
    """Tells models apart by all bytes of their files.

    Args:
        kept: a file in which the files' digests are remembered; it may be deleted at any time.
    """
    files = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    known = _read(kept)
    with ThreadPoolExecutor(READERS) as pool:
        states = dict(zip(files, pool.map(lambda path: _known_or_read(path, known), files), strict=True))
    if kept is not None:
        _write(kept, {str(path.resolve()): state for path, state in states.items()})
    whole = hashlib.blake2b(digest_size=16)
    for path, state in states.items():
        whole.update(f"{path.name}\0{state[0]}\0{state[-1]}\0".encode())
    return whole.hexdigest()


def _known_or_read(path: Path, known: Mapping[str, list[int | str]]) -> list[int | str]:
    state, before = _state(path), known.get(str(path.resolve()))
    if before is not None and before[:-1] == state:
        return before
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return [*state, digest]


def _state(path: Path) -> list[int | str]:
    """A copy that keeps the time of another file, rsync's or cp -p's, has another inode or change time."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read(kept: Path | None) -> Kept:
    try:
        found = json.loads(kept.read_text(encoding="utf-8")) if kept is not None else {}
        return {path: list(state) for path, state in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(kept: Path, states: Kept) -> None:
    partial = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(states, indent=1), encoding="utf-8")
        partial.replace(kept)
    except OSError:  # the next evaluation reads the files again
        with suppress(OSError):
            partial.unlink()
