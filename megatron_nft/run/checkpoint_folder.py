"""Checkpoint folders of a run: which are whole, which is the newest, which may go.

    checkpoints/step_4/           published: all its bytes were on disk before it got this name
    checkpoints/step_6.partial/   being written, or left by a run that was killed
    checkpoints/latest            a link to the newest published one

A step's folder holds Megatron's torch_dist files (weights, optimizer, schedule, random state of all ranks), hf/ (config
and tokenizer), recipe.toml, run.json (what the driver knows) and manifest.json (size and SHA-256 of all of them).
Called by the driver (checkpoints.py). What a file must hash to: actor/manifest.py.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from megatron_nft.actor.manifest import MANIFEST, FileRecord, manifest_text, record, to_disk

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


def publish(partial: Path, files: Mapping[str, FileRecord]) -> Path:
    """Gives a folder in which everything is written its name, and points `latest` at it.

    Args:
        files: names in the folder -> what they hold, those of the ranks; all others are hashed here.
    """
    others = [p for p in partial.rglob("*") if p.is_file() and str(p.relative_to(partial)) not in files]
    records = {**files, **{str(path.relative_to(partial)): record(path) for path in others}}
    (partial / MANIFEST).write_text(manifest_text(records))
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


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate
