"""Weights & Biases: one run there for a run here, however often it is stopped and resumed.

The run's id is kept in run folder/wandb/id. Offline, a resumed run writes its folder anew, whole, unless the earlier
one has been uploaded: then it becomes a run of its own. Online, what the server has of a step stays (its history only
grows), and the rest is added. Called by `observe.trackers`.
"""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import wandb

from megatron_nft.config import Config, RecipeError
from megatron_nft.observe.trackers import tracked_values
from megatron_nft.types import StepReport

INIT_TIMEOUT_S = 30.0  # until the server has answered
FINISH_TIMEOUT_S = 60.0  # for an upload at the run's end; what is left then, `wandb sync` uploads


def make(config: Config) -> "WandbRun":
    """A tracker that has not begun.

    Raises:
        RecipeError: wandb is to be online, and no account is known.
    """
    if config.observe.wandb_mode == "online":
        try:
            knows_account = wandb.login(prompt=False, verify=False)
        except Exception as error:
            raise RecipeError(f'observe.trackers names "wandb", which has an account it can\'t use: {error}') from None
        if not knows_account:
            raise RecipeError(
                'observe.trackers names "wandb", which knows no account here; run `wandb login`, set WANDB_API_KEY, '
                'or set observe.wandb_mode = "offline"'
            )
    return WandbRun(config)


class WandbRun:
    """A run there, opened when it begins."""

    def __init__(self, config: Config) -> None:
        self._config, self._folder = config, config.run_dir / "wandb"
        self._run: wandb.Run | None = None
        self._next_row = 0

    def begin(self, records: Sequence[StepReport]) -> str:
        self.close()
        online = self._config.observe.wandb_mode == "online"
        if not online and any(_is_uploaded(folder) for folder in self._earlier()):
            (self._folder / "id").unlink()
        run = self._run = wandb.init(
            project=self._config.observe.wandb_project,
            entity=self._config.observe.wandb_entity,
            name=self._config.run.name,
            id=self._id(),
            resume="allow" if online else None,
            config=self._config.model_dump(),
            dir=str(self._config.run_dir),
            mode=self._config.observe.wandb_mode,
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S
            ),
        )
        here = Path(run.dir).parent
        for folder in self._earlier():
            if folder.name != here.name and not _is_uploaded(folder):
                shutil.rmtree(folder)
        for name in ("train/step", "train/updates"):
            run.define_metric(name)
        run.define_metric("*", step_metric="train/step")
        self._next_row = run.step
        for record in records:
            self.add(record)
        return run.url if online else f"`wandb sync {here}` uploads it"

    def add(self, record: StepReport) -> None:
        # A row's number tells whether it is there already: an evaluation's is the one behind its step's.
        row = 2 * record.step + (record.kind == "evaluation")
        if row >= self._next_row:
            self._run.log(tracked_values(record), step=row)
            self._next_row = row + 1

    def close(self) -> None:
        if self._run is not None:
            self._run, run = None, self._run
            run.finish()

    def _id(self) -> str:
        path = self._folder / "id"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(6))
        return path.read_text()

    def _earlier(self) -> list[Path]:
        """What is there of earlier attempts under this id."""
        return list(self._folder.glob(f"*run-*-{self._id()}"))


def _is_uploaded(folder: Path) -> bool:
    return not folder.name.startswith("offline") or any(folder.glob("*.synced"))
