"""Warms the quickstart's base model up on demonstrations: `megatron-nft sft` with textbook.toml, then pupils.toml.

Stages come in, each with its texts; their rows are written to a file, in the order in which they are learned, and the
recipe of the same name is run on it, from where the stage before ended. Called by make_assets.py.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_nft.config import Config, load_config
from megatron_nft.run.supervised import run_supervised
from megatron_nft.sft import check

Texts = tuple[str, str]
"""A prompt and its answer."""

RECIPES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the warm-up: what is learned. For how long and how fast is in the recipe of its name."""

    name: str
    stories: Iterator[Texts]
    drills_share: float
    """Share of sheets of sums among the sequences of each update."""


def warm_up(folder: Path, stages: Sequence[Stage], drills: Iterator[Texts], *, seed: int) -> None:
    """Trains the model in folder/untrained through the stages, and puts it into folder/model. Stopped, it goes on where
    it was when it is called again."""
    before = folder / "untrained"
    for stage in stages:
        rows = folder / "demonstrations" / f"{stage.name}.parquet"
        places = [f"model.path={before}", f'data.train=["{rows}"]', f"run.dir={folder / 'runs'}", f"run.seed={seed}"]
        config = check(load_config(RECIPES / f"{stage.name}.toml", places))
        write_rows(rows, stage, drills, config)
        run_supervised(config)
        before = config.run_dir / "hf"
    shutil.copytree(before, folder / "model", dirs_exist_ok=True)


def write_rows(path: Path, stage: Stage, drills: Iterator[Texts], config: Config) -> None:
    """All that a stage's recipe takes, update by update: first its drills, then its stories."""
    updates = config.train.steps * config.train.updates_per_step
    per_update = config.train.groups_per_step // config.train.updates_per_step
    num_drills = round(stage.drills_share * per_update)
    texts: list[Texts] = []
    for _ in range(updates):
        texts += [*islice(drills, num_drills), *islice(stage.stories, per_update - num_drills)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"prompt": prompt, "response": answer} for prompt, answer in texts]), path)
