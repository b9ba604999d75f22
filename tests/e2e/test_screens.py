"""A run as it looks on terminals of 80, 120 and 200 columns, and as a log: no line broken, columns aligned.

With MEGATRON_NFT_SCREENS=megatron_nft/observe/screens what is seen is written there, for the documentation:

    MEGATRON_NFT_SCREENS=megatron_nft/observe/screens python -m pytest tests/e2e/test_screens.py --all
"""

import os
import re
from pathlib import Path

import pytest

from megatron_nft.observe.step_line import FULL_WIDTH
from tests.terminal import pseudo_terminal

pytestmark = pytest.mark.e2e
SETTINGS = ["run.overwrite=all", "train.steps=4", "train.evaluate_every=2", "checkpoint.every=2",
            "rollout.kv_cache_gib=0.25", "evaluate.max_prompts=32", "evaluate.samples=2"]  # fmt: skip
OTHERS = pytest.mark.night("a narrow terminal and a log, which a push has, are the hard ones")


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=OTHERS), pytest.param(200, marks=OTHERS)])
def test_no_line_is_broken_and_columns_are_aligned(shared, tmp_path, columns):
    with pseudo_terminal(columns) as (stream, shown):
        ended = shared.train(tmp_path, *SETTINGS, out=stream)
    assert ended.status == 0, ended.err
    lines = [line.replace(str(tmp_path), "runs") for line in shown.lines]
    paths = [line for line in shown.lines if len(line) > columns]
    assert [line for line in paths if str(tmp_path) not in line] == [], "only a path may be longer"
    head = next(line for line in lines if "tok/s" in line)
    rows = [line for line in lines if re.match(r"step \d/4 ", line)]
    ends = [match.end() for match in re.finditer(r"\S+", head)]
    assert len(rows) == 4 and all(
        row[end - 1] != " " and row[end : end + 1] in (" ", "") for row in rows for end in ends
    )
    assert ("rollout" in rows[0]) == (columns >= FULL_WIDTH)
    assert any(re.match(r"  next +megatron-nft evaluate\b", line) for line in lines)
    keep(f"{columns}_columns.txt", lines)


def test_a_log_names_its_numbers_and_the_time_of_day(straight):
    lines = [line.replace(str(straight.parent), "runs") for line in (straight.parent / "out").read_text().splitlines()]
    steps = [line for line in lines if re.match(r"\d\d:\d\d:\d\d step \d/6 \|", line)]
    assert len(steps) == 6 and len({tuple(m.start() for m in re.finditer(r"\|", line)) for line in steps}) == 1
    table = next(i for i, line in enumerate(lines) if line.startswith("----"))
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines[:table])
    keep("log.txt", lines)


def keep(name, lines):
    if folder := os.environ.get("MEGATRON_NFT_SCREENS"):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, name).write_text("\n".join(lines) + "\n")
