"""A run's checkpoints, as the driver sees them: begun in a step, published once whole, gone back to at a start.

The actor's ranks write their state (actor/checkpoint.py); the driver adds what it knows itself. The folder counts as
soon as all of that is on the disk (publication.py). Called by run.py and train.py.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_nft.actor.adapter_record import adapter_record, check_same_adapter
from megatron_nft.actor.checkpoint_parts import write_driver_part
from megatron_nft.actor.manifest import CheckpointError, damages, read_manifest, to_disk
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import (
    Config,
    LoraConfig,
    RecipeError,
    changed_settings,
    changes_in_words,
    flat_settings,
    to_toml,
)
from megatron_nft.families.hf_config import SIDE_FILES, read_hf_config
from megatron_nft.groups.file import load_groups, save_groups
from megatron_nft.groups.queue import Kept
from megatron_nft.observe.owner import OwnerLost
from megatron_nft.run import checkpoint_folder
from megatron_nft.run.publication import Publication
from megatron_nft.types import Prompt
from megatron_nft.weights.export import copy_side_files

PLAIN = ("step", "policy_version", "sampling", "minutes", "record")
"""Of Progress, what run.json holds."""
PROGRESS, GROUPS, RECIPE, CONFIG = "run.json", "groups.npz", "recipe.toml", f"{SIDE_FILES}/config.json"
ASK_S = 0.5
"""Between two questions to the ranks while a save is waited for: whether one can't write."""
SHOWN = 8
"""Damaged files, or changed settings, that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the driver knows after a step, and a later run must know to go on as if it had never stopped."""

    step: int
    policy_version: int
    sampling: dict[str, Any]  # GroupSource.state()'s plain values
    minutes: float  # that the run has taken
    record: dict[str, Any] | None = None  # the step's in metrics.jsonl, should the run have been killed before it
    groups: tuple[Kept, ...] = ()  # graded, and not trained on yet, where sampling is ahead
    folder: Path | None = field(default=None, compare=False)  # that it was read from; its groups are there


class Checkpoints:
    """Those of one run.

    Args:
        announce: prints a line.
        record: a step's in metrics.jsonl, as it is now.
        check: raises an error where the run's folder is another's by now: asked before anything there is published,
            begun or deleted.
    """

    def __init__(
        self,
        config: Config,
        actors: Actors,
        announce: Callable[[str], None],
        record: Callable[[int], dict[str, Any] | None] = lambda step: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._actors, self._announce, self._record = config, actors, announce, record
        self._check = check
        self._under_way: tuple[Progress, Publication] | None = None
        self._left: list[Publication] = []  # not waited for any more
        self._newest_bytes = 0
        self._has_begun = False  # whatever is in the run folder is of this run
        self._newest_step = 0

    @property
    def newest_step(self) -> int:
        """Of the checkpoint that was saved or loaded last."""
        if self._under_way is not None and self._under_way[1].is_published:
            return self._under_way[0].step
        return self._newest_step

    def is_due(self, step: int) -> bool:
        """Whether the recipe wants a checkpoint of this step."""
        every = self._config.checkpoint.every
        return bool(every) and (step % every == 0 or step == self._config.train.steps)

    def begin(self, progress: Progress) -> None:
        """Copies the actor's state and begins to write it. A checkpoint that can't be written is said, and no error.

        It counts as soon as it is written, before the step has ended: the step's record goes with it.
        """
        self.finish()
        self._check()
        folder = checkpoint_folder.step_folder(self._config.run_dir, progress.step)
        try:
            folder = checkpoint_folder.begin(self._config.run_dir, progress.step)
            if (free := shutil.disk_usage(folder).free) < self._newest_bytes:
                raise OSError(f"{free / 1e9:.1f} GB are free, the last one took {self._newest_bytes / 1e9:.1f} GB")
        except OSError as error:
            self._give_up(progress, folder, str(error))
            return
        self._actors.begin_save(folder, progress.step, progress.policy_version)
        progress = replace(progress, record=self._record(progress.step))
        publication = Publication(
            folder, lambda: self._write_own(progress, folder), lambda: self._prune(progress.step), self._check
        )
        self._under_way = (progress, publication)
        if not self._config.checkpoint.in_background:
            self.finish()

    def _write_own(self, progress: Progress, folder: Path) -> None:
        """What the driver knows, to the disk."""
        plain = {name: getattr(progress, name) for name in PLAIN}
        (folder / PROGRESS).write_text(json.dumps(plain, indent=1) + "\n")
        if progress.groups:
            save_groups(progress.groups, folder / GROUPS)
        (folder / RECIPE).write_text(to_toml(self._config), encoding="utf-8")
        (folder / SIDE_FILES).mkdir()
        copy_side_files(self._config.model.hf_folder, folder / SIDE_FILES)
        own = [folder / name for name in (PROGRESS, GROUPS, RECIPE) if (folder / name).exists()]
        own += [path for path in (folder / SIDE_FILES).rglob("*") if path.is_file()]
        for path in {*own, *(path.parent for path in own)}:
            to_disk(path)
        write_driver_part(folder, [os.path.relpath(path, folder) for path in own])

    def poll(self) -> None:
        """Says whether the checkpoint under way can't be written. To be called now and then, when ranks are idle."""
        if self._under_way is None:
            return
        progress, publication = self._under_way
        try:
            if not publication.is_over:
                self._actors.is_saved()
        except CheckpointError as error:
            publication.error = error
            publication.close()
        if publication.is_over or publication.error is not None:
            self._settle(progress, publication)

    def finish(self, step: int | None = None) -> None:
        """Waits until the checkpoint under way is published, or is known not to be possible.

        Args:
            step: if it is of another one, it is left to itself: it counts if it becomes whole, and nobody waits for it.

        Raises:
            CheckpointError: it is not written within actor.timeout_s.
        """
        timeout_s = self._config.actor.timeout_s
        deadline = time.monotonic() + timeout_s
        while self._under_way is not None:
            progress, publication = self._under_way
            if publication.wait(0 if step not in (None, progress.step) else ASK_S):
                self._settle(progress, publication)
            elif step not in (None, progress.step):
                self._left.append(publication)
                self._under_way = None
            elif time.monotonic() > deadline:
                raise CheckpointError(f"{publication.partial}: not written within actor.timeout_s = {timeout_s:g} s")
            else:
                self.poll()

    def abandon(self) -> None:
        """Gives the checkpoint under way up, unless it is whole: ranks that were writing it are lost."""
        if self._under_way is not None:
            progress, publication = self._under_way
            publication.close()
            if publication.is_over:
                self._settle(progress, publication)
            self._under_way = None  # its folder goes with the next one that is published

    def close(self) -> None:
        """Nothing is published from here on: the folder is no longer this run's."""
        with suppress(OwnerLost):  # whoever ends here has heard of it
            self.abandon()
        for publication in self._left:
            publication.close()

    def _settle(self, progress: Progress, publication: Publication) -> None:
        self._under_way = None
        if publication.error is not None:
            self._give_up(progress, publication.partial, str(publication.error))
            return
        self._newest_step = progress.step
        folder = checkpoint_folder.step_folder(self._config.run_dir, progress.step)
        self._newest_bytes = sum(file.num_bytes for file in read_manifest(folder).values())

    def _prune(self, step: int) -> None:
        keep = self._config.checkpoint
        checkpoint_folder.prune(self._config.run_dir, newest=step, keep_last=keep.keep_last, keep_every=keep.keep_every)

    def _give_up(self, progress: Progress, folder: Path, why: str) -> None:
        self._check()
        shutil.rmtree(folder, ignore_errors=True)
        self._announce(
            f"step {progress.step}: no checkpoint was saved ({why}); the run goes on, earlier ones are as they were"
        )

    def restore(self) -> Progress | None:
        """Goes back to the newest whole checkpoint, or to the one that the recipe names. None: there is none.

        Damaged ones are named and left as they are. From the second call on, what this run has saved counts, whatever
        the recipe says of earlier runs.

        Raises:
            CheckpointError: all are damaged, or the named one is.
        """
        own = checkpoint_folder.published(self._config.run_dir) if self._has_begun else []
        candidates = own or checkpoints_to_resume(self._config)
        self._has_begun = True
        for folder in candidates:
            try:
                damages = self._actors.damages(folder)
            except CheckpointError as error:
                damages = [str(error)]
            if not damages:
                return self._load(folder)
            for damage in damages[:SHOWN]:
                self._announce(f"damaged checkpoint: {damage}")
            self._announce(f"{folder} is not used (damaged files: {len(damages)}), nothing of it was deleted")
        if candidates:
            raise CheckpointError(
                f"no checkpoint of {', '.join(str(folder) for folder in candidates)} is whole; bring a copy back, or "
                'give the run another run.name, or begin anew there with run.overwrite="all"'
            )
        return None

    def _load(self, folder: Path) -> Progress:
        progress = _read_progress(folder)
        if folder.parent.parent != self._config.run_dir:
            progress = replace(progress, record=None)  # another run's
        self._actors.load(folder)
        self._newest_step = progress.step
        changes = changed_settings((folder / RECIPE).read_text(), to_toml(self._config))
        if changes:
            self._announce(f"changed since the checkpoint: {changes_in_words(changes)}")
        self._announce(f"resumed from {folder}: step {progress.step}, {progress.minutes:.1f} minutes in")
        return progress


def checkpoints_to_resume(config: Config) -> list[Path]:
    """Checkpoints that a run with this recipe may go on from, the first choice first.

    Raises:
        RecipeError: the folder that the recipe names is no checkpoint, or one is of another model or of other adapters.
    """
    resume = config.checkpoint.resume
    own = [] if config.run.overwrite or resume == "never" else checkpoint_folder.published(config.run_dir)
    if own or resume in ("auto", "never"):
        folders = own
    elif (Path(resume) / PROGRESS).is_file():
        folders = [Path(resume)]
    else:
        raise RecipeError(
            f'checkpoint.resume = {resume!r} is no checkpoint of a run (no {PROGRESS} in it); give "auto", "never", or '
            f"a folder such as runs/NAME/{checkpoint_folder.FOLDER}/step_10"
        )
    if (folder := _first_whole(folders, CONFIG)) is not None:
        _check_model(config, folder)
    if (folder := _first_whole(folders, RECIPE)) is not None:
        _check_adapters(config, folder)
    return folders


def progress_to_resume(config: Config) -> Progress | None:
    """Of the checkpoint that will most likely be gone on from, before its large files have been looked at."""
    folder = _first_whole(checkpoints_to_resume(config), PROGRESS)
    return folder and _read_progress(folder)


def _first_whole(folders: list[Path], name: str) -> Path | None:
    """The first folder in which the file of this name is what it was."""
    for folder in folders:
        with suppress(CheckpointError, KeyError):
            if not damages(folder, read_manifest(folder), [name]):
                return folder
    return None


def _read_progress(folder: Path) -> Progress:
    return Progress(**json.loads((folder / PROGRESS).read_text()), folder=folder)


def read_groups(progress: Progress, prompts: Mapping[str, Prompt]) -> tuple[Kept, ...]:
    """The groups that a checkpoint holds.

    Args:
        progress: as `Checkpoints.restore` returned it.
        prompts: the run's, by id.
    """
    if progress.folder is None or not (progress.folder / GROUPS).exists():
        return progress.groups
    return tuple(load_groups(progress.folder / GROUPS, prompts))


def _check_model(config: Config, folder: Path) -> None:
    saved, now = (asdict(read_hf_config(side)) for side in (folder / SIDE_FILES, config.model.hf_folder))
    differences = [
        f"{name} {saved[name]} in the checkpoint, {now[name]} now" for name in now if saved[name] != now[name]
    ]
    if differences:
        raise RecipeError(
            f"{folder} is of another model than model.path = {config.model.path!r}: {'; '.join(differences)}; give "
            "the run another run.name, or model.path the model that it began with"
        )


def _check_adapters(config: Config, folder: Path) -> None:
    """By the recipe beside them. Whether the model has other numbers by now the ranks find out: they read all of it."""
    settings = flat_settings((folder / RECIPE).read_text(encoding="utf-8"))
    lora = {name.removeprefix("lora."): value for name, value in settings.items() if name.startswith("lora.")}
    sides = (LoraConfig(**lora) if lora.get("rank") else LoraConfig(), settings.get("model.path")), (config.lora, None)
    saved, now = (
        side.adapters and adapter_record(side.adapters, base=str(base), base_digest="") for side, base in sides
    )
    try:
        check_same_adapter(folder, saved, now)
    except CheckpointError as error:
        raise RecipeError(str(error)) from None
