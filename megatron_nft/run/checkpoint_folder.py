"""Checkpoint folders of a run: which are whole, which is the newest, and what every file must hash to.

    checkpoints/step_4/           published: all its bytes were on disk before it got this name
    checkpoints/step_6.partial/   being written, or left by a run that was killed
    checkpoints/latest            a link to the newest published one

A step's folder holds Megatron's torch_dist files (weights, optimizer, schedule, random state of all ranks), hf/ (config
and tokenizer), recipe.toml, run.json (what the driver knows) and manifest.json (size and SHA-256 of all of them).
Called by the driver (resume.py) and by the actor's ranks, which hash what they write.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER, LATEST, MANIFEST = "checkpoints", "latest", "manifest.json"
PARTIAL, DAMAGED, DELETING = ".partial", ".damaged", ".deleting"
"""Ends of names that are no checkpoint's."""


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


def step_folder(run_dir: Path, step: int) -> Path:
    """Where a step's checkpoint is, once published."""
    return run_dir / FOLDER / f"step_{step}"


def step_of(folder: Path) -> int:
    """The step of a published checkpoint's folder."""
    return int(folder.name.removeprefix("step_"))


def published(run_dir: Path) -> list[Path]:
    """All published checkpoints, the newest first. Whether their bytes are still what they were is not looked at."""
    folders = (run_dir / FOLDER).glob("step_*")
    return sorted((f for f in folders if re.fullmatch(r"step_\d+", f.name)), key=step_of, reverse=True)


def begin(run_dir: Path, step: int) -> Path:
    """An empty folder to write a step's checkpoint into."""
    partial = step_folder(run_dir, step).with_suffix(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, files: Mapping[str, FileRecord]) -> Path:
    """Gives a folder in which everything is written its name, and points `latest` at it.

    Args:
        files: names in the folder -> what they hold, those of the ranks; all others are hashed here.
    """
    others = [p for p in partial.rglob("*") if p.is_file() and str(p.relative_to(partial)) not in files]
    records = {**files, **{str(path.relative_to(partial)): record(path) for path in others}}
    (partial / MANIFEST).write_text(_manifest_text(records))
    for path in [*others, partial / MANIFEST, *{p.parent for p in others}, partial]:
        to_disk(path)
    folder = partial.with_suffix("")
    if folder.exists():  # it was damaged: a run goes on from an earlier one only then
        os.replace(folder, _unused(folder.with_suffix(DAMAGED)))
    os.replace(partial, folder)
    to_disk(folder.parent)
    link = folder.parent / f".{LATEST}{PARTIAL}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, folder.parent / LATEST)
    return folder


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
    if text != _manifest_text(records):
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


def prune(run_dir: Path, *, newest: int, keep_last: int, keep_every: int) -> None:
    """Deletes what is not to be kept up to step `newest`, and what killed runs have left half-written.

    Args:
        keep_last: the last so many stay.
        keep_every: those of steps that are a multiple of it stay, too. 0: none.
    """
    older = [folder for folder in published(run_dir) if step_of(folder) <= newest]
    for folder in older[keep_last:]:
        if not keep_every or step_of(folder) % keep_every:
            os.replace(folder, folder.with_suffix(DELETING))  # never half a checkpoint under a whole one's name
    _delete_leftovers(run_dir)


def delete_all(run_dir: Path) -> None:
    """For a run that replaces an earlier one of its name."""
    (run_dir / FOLDER / LATEST).unlink(missing_ok=True)
    for folder in published(run_dir):
        os.replace(folder, folder.with_suffix(DELETING))
    _delete_leftovers(run_dir)


def _delete_leftovers(run_dir: Path) -> None:
    for end in (PARTIAL, DELETING):
        for folder in (run_dir / FOLDER).glob(f"step_*{end}"):
            shutil.rmtree(folder, ignore_errors=True)


def _manifest_text(records: Mapping[str, FileRecord]) -> str:
    files = {name: asdict(records[name]) for name in sorted(records)}
    sha256 = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return json.dumps({"sha256": sha256, "files": files}, indent=1) + "\n"


def to_disk(path: Path) -> None:
    """Of a file or a folder: a name must not outlive a power cut that its contents don't."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate
