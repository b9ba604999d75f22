"""Ground truths of real data sets, as answers to their own problem and to another. The texts stay where they are."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megatron_nft.config import VerdictConfig
from megatron_nft.verdict.judge import Judge

FOLDER = Path(os.environ.get("MEGATRON_NFT_DATA", "/work/shared/data"))
NAMES = ("math500", "olympiadbench", "aime24", "gsm8k_test")
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason=f"no data sets in {FOLDER}; set MEGATRON_NFT_DATA to a folder with {NAMES[0]}.parquet ...",
)

EQUAL_ENOUGH = {("5", "x=5")}
"""(ground truth, another's ground truth) that are no equal texts and mean the same: "x = " may be left out."""


@pytest.fixture(scope="module")
def judge():
    with Judge(VerdictConfig(workers=2, deadline_s=10)) as judge:
        judge.warm_up()
        yield judge


def boxed(answers):
    return [rf"Adding up, we find that the answer is $\boxed{{{answer}}}$, as was to be shown." for answer in answers]


@pytest.mark.parametrize("name", NAMES)
def test_ground_truths_as_answers(judge, name):
    rows = pq.read_table(FOLDER / f"{name}.parquet", columns=["reward_model", "data_source"]).to_pylist()
    golds, sources = [r["reward_model"]["ground_truth"] for r in rows], [r["data_source"] for r in rows]

    verdicts = judge.judge_answers(boxed(golds), golds, sources)
    assert sum(v.is_right for v in verdicts) >= 0.995 * len(golds)

    others = golds[1:] + golds[:1]
    verdicts = judge.judge_answers(boxed(others), golds, sources)
    right = {(gold, other) for gold, other, v in zip(golds, others, verdicts, strict=True) if v.is_right}
    assert {pair for pair in right if pair[0] != pair[1]} <= EQUAL_ENOUGH
    assert all(v.is_right for gold, other, v in zip(golds, others, verdicts, strict=True) if gold == other)
    assert sum(v.kind in ("timeout", "error") for v in verdicts) <= 0.01 * len(golds)  # a few golds are no formulas
