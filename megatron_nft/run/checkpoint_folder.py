"""Checkpoint folders of a run: which are whole, which is the newest, which may go.

    checkpoints/step_4/           published: all its bytes were on disk before it got this name
    checkpoints/step_6.partial/   being written, or left by a run that was killed: whole as soon as all parts are there
    checkpoints/latest            a link to the newest published one

A step's folder holds Megatron's torch_dist files (weights, optimizer, schedule, random state of all ranks), hf/ (config
and tokenizer), recipe.toml, run.json (what the driver knows) and manifest.json (size and SHA-256 of all of them).
Called by the driver (checkpoints.py, publication.py). Who has written what: actor/checkpoint_parts.py; what a file must
hash to: actor/manifest.py.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from megatron_nft.actor.checkpoint_parts import assemble, forget_parts, missing_parts
from megatron_nft.actor.manifest import (
    MANIFEST,
    CheckpointError,
    FileRecord,
    manifest_text,
    read_manifest,
    to_disk,
    write_to_disk,
)

FOLDER, LATEST = "checkpoints", "latest"
PARTIAL, DAMAGED, DELETING = ".partial", ".damaged", ".deleting"
"""Ends of names that are no checkpoint's."""


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


def complete(partial: Path) -> Path | None:
    """Publishes a folder if all that is to be in it is on the disk; None if it is not, yet. Fine wherever an earlier
    attempt was killed.

    Raises:
        CheckpointError: what is there does not agree.
    """
    if (partial / MANIFEST).exists():  # the last that is written
        read_manifest(partial)
    elif missing_parts(partial):
        return None
    else:
        write_manifest(partial, assemble(partial))
    forget_parts(partial)
    return publish(partial)


def write_manifest(partial: Path, records: Mapping[str, FileRecord]) -> None:
    """Of all files of a checkpoint, which are on the disk."""
    write_to_disk(partial / MANIFEST, manifest_text(records).encode())


def publish(partial: Path) -> Path:
    """Gives a folder in which everything is written its name, and points `latest` at the newest."""
    to_disk(partial)
    folder = partial.with_suffix("")
    if folder.exists():  # it was damaged: a run goes on from an earlier one only then
        os.replace(folder, _unused(folder.with_suffix(DAMAGED)))
    os.replace(partial, folder)
    to_disk(folder.parent)
    _point_at_newest(folder.parent)
    return folder


def complete_left_behind(run_dir: Path) -> list[str]:
    """Of what an earlier run left under way when it was killed: publishes what is whole, and deletes what is not.

    Returns:
        What became of each, in words.
    """
    said = []
    for partial in sorted((run_dir / FOLDER).glob(f"step_*{PARTIAL}"), key=lambda path: step_of(path.with_suffix(""))):
        why = ", ".join(missing_parts(partial))
        try:
            if folder := complete(partial):
                said.append(f"{folder}: was whole when the run was killed, and is published now")
                continue
        except (CheckpointError, OSError) as error:
            why = str(error)
        shutil.rmtree(partial, ignore_errors=True)
        said.append(f"{partial}: half-written when the run was killed, deleted (not there: {why})")
    if published(run_dir):
        _point_at_newest(run_dir / FOLDER)
    return said


def _point_at_newest(checkpoints: Path) -> None:
    newest = published(checkpoints.parent)[0].name
    if os.path.islink(checkpoints / LATEST) and os.readlink(checkpoints / LATEST) == newest:
        return
    link = checkpoints / f".{LATEST}{PARTIAL}"
    link.unlink(missing_ok=True)
    link.symlink_to(newest)
    os.replace(link, checkpoints / LATEST)


def prune(run_dir: Path, *, newest: int, keep_last: int, keep_every: int) -> None:
    """Deletes what is not to be kept up to step `newest`, and what was given up half-written.

    Args:
        keep_last: the last so many stay.
        keep_every: those of steps that are a multiple of it stay, too. 0: none.
    """
    older = [folder for folder in published(run_dir) if step_of(folder) <= newest]
    for folder in older[keep_last:]:
        if not keep_every or step_of(folder) % keep_every:
            os.replace(folder, folder.with_suffix(DELETING))  # never half a checkpoint under a whole one's name
    _delete_leftovers(run_dir, newest)


def delete_all(run_dir: Path) -> None:
    """For a run that replaces an earlier one of its name."""
    (run_dir / FOLDER / LATEST).unlink(missing_ok=True)
    for folder in published(run_dir):
        os.replace(folder, folder.with_suffix(DELETING))
    _delete_leftovers(run_dir)


def _delete_leftovers(run_dir: Path, newest: int | None = None) -> None:
    """Up to step `newest`: one after that may be under way."""
    for end in (PARTIAL, DELETING):
        for folder in (run_dir / FOLDER).glob(f"step_*{end}"):
            if newest is None or step_of(folder.with_suffix("")) <= newest:
                shutil.rmtree(folder, ignore_errors=True)


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate
