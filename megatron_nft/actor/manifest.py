"""What the files of a checkpoint must hold: the manifest that is written beside them, and what is no more as it was.

Ranks hash what they write and look at shares of what is there (worker.py, checkpoint.py); the driver writes the
manifest (run/checkpoint_folder.py). No torch here.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A folder is not a checkpoint that can be gone on from. The message gives file, reason and remedy."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file was when it was written."""

    num_bytes: int
    sha256: str


def record(path: Path) -> FileRecord:
    """Reads a file from end to end."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(num_bytes=path.stat().st_size, sha256=sha256)


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """What the files of a published checkpoint must hold.

    Raises:
        CheckpointError: there is none, or it is not as it was written.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text()
        records = {name: FileRecord(**plain) for name, plain in json.loads(text)["files"].items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; {folder} is no checkpoint of a run") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: damaged, it is no list of files") from None
    if text != manifest_text(records):
        raise CheckpointError(f"{path}: damaged, it does not agree with its own SHA-256")
    return records


def damages(folder: Path, manifest: Mapping[str, FileRecord], names: Iterable[str]) -> list[str]:
    """Of each of these files that is not what the manifest says: its path, and what is wrong with it."""
    found = []
    for name in names:
        path, expected = folder / name, manifest[name]
        if not path.is_file():
            found.append(f"{path}: missing")
        elif (num_bytes := path.stat().st_size) != expected.num_bytes:
            found.append(f"{path}: has {num_bytes:,} bytes, {expected.num_bytes:,} were written")
        elif record(path) != expected:
            found.append(f"{path}: its bytes have changed since it was written (SHA-256)")
    return found


def shares(manifest: Mapping[str, FileRecord], count: int) -> list[list[str]]:
    """The names, in `count` shares of about as many bytes."""
    share_of: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for name in sorted(manifest, key=lambda name: (-manifest[name].num_bytes, name)):
        index = loads.index(min(loads))
        share_of[index].append(name)
        loads[index] += manifest[name].num_bytes
    return share_of


def manifest_text(records: Mapping[str, FileRecord]) -> str:
    """Of manifest.json: the files, and a hash of their list."""
    files = {name: asdict(records[name]) for name in sorted(records)}
    sha256 = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return json.dumps({"sha256": sha256, "files": files}, indent=1) + "\n"


def write_to_disk(path: Path, content: bytes) -> None:
    """A file that is whole as soon as it has its name, and stays so after a power cut."""
    partial = path.with_name(f"{path.name}.new")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Of a file or a folder: a name must not outlive a power cut that its contents don't."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
