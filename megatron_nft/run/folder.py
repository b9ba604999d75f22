"""A run's folder: whether this run may have it, and what an earlier run of its name left there.

A recipe comes in; for the length of a block the folder is this run's and no one else's, or a RecipeError says why not.
Called by run.py before anything starts. Who owns a folder: observe/owner.py. What is written into it:
observe/report.py; its checkpoints: checkpoint_folder.py.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from megatron_nft.actor.manifest import MANIFEST
from megatron_nft.config import Config, RecipeError, changed_settings, changes_in_words, to_toml
from megatron_nft.observe.owner import Owner
from megatron_nft.observe.records import read_records, read_step_reports
from megatron_nft.observe.report import FILES
from megatron_nft.observe.terminal import accuracy_rows
from megatron_nft.run.checkpoint_folder import FOLDER, complete_left_behind, delete_all, published, step_of

METRICS, ROLLOUTS, RECIPE = "metrics.jsonl", "rollouts.jsonl", "recipe.toml"
FOLDERS = (FOLDER, "logs", "batches", "nonfinite", "gap", "tensorboard", "wandb")
"""That a run makes in its own."""
SHOWN = 8


@contextmanager
def run_folder(config: Config, announce: Callable[[str], None]) -> Iterator[Owner]:
    """The folder, made if need be. With run.overwrite it is emptied of what an earlier run wrote; else what is there is
    gone on with, from its last checkpoint; or, where there is none yet, begun again, with other settings, too.

    Raises:
        FolderInUse: another process writes there.
        RecipeError: it can't be written, or holds what this run can neither go on with nor replace.
    """
    with Owner.take(config.run_dir, announce) as owner:
        _check_writable(config.run_dir)
        if config.run.overwrite:
            _replace(config)
        else:
            _go_on(config, announce)
        yield owner


def ending_of(config: Config) -> str | None:
    """Of a run that has come to its end: what it gave, and what to type for more. None: something is left to do."""
    folder, steps = config.run_dir, config.train.steps
    checkpoints, model = published(folder), folder / "hf"
    if config.run.overwrite or not (model / "config.json").is_file() or not (folder / METRICS).is_file():
        return None
    records = read_step_reports(folder / METRICS)
    last = step_of(checkpoints[0]) if checkpoints else max((r.step for r in records if r.kind == "step"), default=0)
    written_before = checkpoints[0] / MANIFEST if checkpoints else folder / METRICS
    if last < steps or model.stat().st_mtime < written_before.stat().st_mtime:  # of an end before the last
        return None
    if config.data.held_out and not any(r.kind == "evaluation" and r.step >= steps for r in records):
        return None
    accuracies = "".join(f", {label} {values}" for label, values in accuracy_rows(records).items())
    saved = "its checkpoints and its model" if checkpoints else "its model"
    on = f"train.steps={2 * last}" if checkpoints else "no: it has kept no checkpoint"
    return (
        f"{folder} is done: {last} of {steps} steps{accuracies}\n"
        f"  model {model}, report {folder / 'report.html'}\n"
        f"  to train on:      {on}\n"
        f"  to begin another: run.name=NAME\n"
        f"  to begin anew:    run.overwrite=all   (deletes {saved})"
    )


def _check_writable(folder: Path) -> None:
    for path in (folder / name for name in FOLDERS):
        if path.exists() and not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
            what = "is no folder" if not path.is_dir() else "can't be written by this user"
            raise RecipeError(
                f"{path} {what}, and a run would write there; move it away, or set run.name to a new name"
            )


def _replace(config: Config) -> None:
    """Deletes what an earlier run wrote; what others put there stays."""
    folder = config.run_dir
    saved = [*published(folder), *_exported(folder)]
    if saved and config.run.overwrite != "all":
        raise RecipeError(
            f"run.overwrite = true replaces a run that has saved nothing yet, and {folder} has {_listed(saved)}; "
            'set run.name to a new name, or run.overwrite="all" to delete them'
        )
    delete_all(folder)
    for path in [folder / "logs", *_exported(folder)]:
        shutil.rmtree(path, ignore_errors=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / "wandb" / "id").unlink(missing_ok=True)  # the new run is another one there, too


def _go_on(config: Config, announce: Callable[[str], None]) -> None:
    folder = config.run_dir
    num_steps = _check_records(folder)
    for line in complete_left_behind(folder):
        announce(line)
    if checkpoints := published(folder):
        if config.checkpoint.resume == "never":
            raise RecipeError(
                f'checkpoint.resume = "never", and {folder} has {_listed(checkpoints)} of an earlier run; set run.name '
                'to a new name, or run.overwrite="all" to delete them'
            )
        return
    if ending_of(config):
        return
    changes = _changes(config)
    changed = f"changed since: {changes_in_words(changes)}" if changes else ""
    if (exported := _exported(folder)) and changes != []:
        raise RecipeError(
            f"{folder} has {_listed(exported)}, no checkpoint to go on from, and {changed or 'no recipe.toml'}; set "
            'run.name to a new name, or run.overwrite="all" to begin anew there'
        )
    if num_steps:
        again = f"; {changed}" if changed else ""
        announce(f"{folder} has {num_steps} steps, of which no checkpoint was saved: the run begins again{again}")
    if changes != []:  # an evaluation at step 0 is another run's
        for name in FILES:
            (folder / name).unlink(missing_ok=True)


def _check_records(folder: Path) -> int:
    """Steps that are recorded.

    Raises:
        RecipeError: what lies there is no run's.
    """
    try:
        if (folder / ROLLOUTS).exists():
            first = next(read_records(folder / ROLLOUTS), {"step": 0, "source": ""})  # there may be gigabytes of them
            first["step"], first["source"]
        if not (folder / METRICS).exists():
            return 0
        return sum(report.kind == "step" for report in read_step_reports(folder / METRICS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{folder} has a {METRICS} or {ROLLOUTS} that is no run's ({type(error).__name__}: {error}); move it away, "
            "or set run.name to a new name"
        ) from None


def _changes(config: Config) -> list[str] | None:
    """Settings that are others than those of the run that was there; None: it can't be told."""
    try:
        recipe = (config.run_dir / RECIPE).read_text(encoding="utf-8")
        return changed_settings(recipe, to_toml(config)) if recipe else None
    except (OSError, ValueError):
        return None


def _exported(folder: Path) -> list[Path]:
    """Models that a run has written for others."""
    return sorted(path for path in [folder / "hf", *folder.glob("hf_step_*")] if (path / "config.json").is_file())


def _listed(saved: list[Path]) -> str:
    newest = datetime.fromtimestamp(max(path.stat().st_mtime for path in saved)).strftime("%d %B %Y, %H:%M")
    more = f" and {len(saved) - SHOWN} more" if len(saved) > SHOWN else ""
    return f"{', '.join(path.name for path in saved[:SHOWN])}{more} (the newest of {newest})"
