"""`python -m megatron_nft.train_async`: the synchronous run's numbers without staleness; and whatever is slow, dies or
runs out with it. Every part is real.
"""

import json

import pytest

from tests.e2e.test_resume import records
from tests.e2e.test_train import assert_no_survivors, start

pytestmark = pytest.mark.e2e
SHORT = ["evaluate.max_prompts=12", "rollout.kv_cache_gib=0.25"]


def run(tmp_path, *overrides, module="megatron_nft.train_async", status=0):
    """A whole run; its output, and the records of its metrics.jsonl."""
    process, mark = start(tmp_path, *SHORT, *overrides, module=module)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    assert_no_survivors(mark)
    return out, err, tmp_path / "quickstart"


def steps(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def test_without_staleness_every_number_is_the_synchronous_runs(tmp_path):
    same = ["train.steps=3", "train.evaluate_every=2", "checkpoint.every=0", "rollout.engines=2"]
    _, _, expected = run(tmp_path / "sync", *same, module="megatron_nft.train")
    _, _, folder = run(tmp_path / "async", *same, "rollout.max_staleness=0")
    both = [records(expected), records(folder)]
    assert any(record["rollout/groups_surplus"] for record in both[0] if record["kind"] == "step")
    for record, other in zip(*both, strict=True):
        assert {k: v for k, v in other.items() if not k.startswith("async/")} == record
        assert other.get("async/staleness_max", 0) == 0
    answers = [(path / "rollouts.jsonl").read_text() for path in (expected, folder)]
    assert answers[0] == answers[1]
    weights = [next((path / "hf").glob("*.safetensors")).read_bytes() for path in (expected, folder)]
    assert weights[0] == weights[1]
