"""The study's problems: the quickstart's stories, but only the longest. Called by run.py.

Of stories of three steps the base model gets one in nine right, and four in five pupils that it has learned from got
them wrong.
"""

import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2] / "launch" / "quickstart"))
from problems import REQUEST as REQUEST
from problems import Problem as Problem
from problems import as_row, problems

STEPS_SHARE = {3: 0.5, 4: 0.5}
NUM_TRAIN, NUM_HELD_OUT, SEED = 6000, 256, 300


def write_problems(
    folder: Path,
    *,
    steps_share: Mapping[int, float] = STEPS_SHARE,
    num_train: int = NUM_TRAIN,
    num_held_out: int = NUM_HELD_OUT,
    seed: int = SEED,
    as_row: Callable[..., dict[str, Any]] = as_row,
) -> None:
    """train.parquet and held_out.parquet, disjoint whatever the names; the same files each time."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = list(islice(problems(seed, steps_share=steps_share), num_held_out))
    used = frozenset(problem.signature for problem in held_out)
    train = islice(problems(seed + 1, without=used, steps_share=steps_share), num_train)
    for split, rows in (("held_out", held_out), ("train", train)):
        table = pa.Table.from_pylist([as_row(row, index=i, split=split) for i, row in enumerate(rows)])
        pq.write_table(table, folder / f"{split}.parquet")
