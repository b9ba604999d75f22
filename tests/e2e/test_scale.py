"""The simulated cluster runs: the real driver on 16 ranks and 4 engines that are played (benchmarks/scale)."""

import json
import subprocess
import sys
import time

import pytest
import ray

from benchmarks.scale import sampling
from megatron_nft.cluster import stream
from megatron_nft.plan import rounds

SMALL = [
    "train.groups_per_step=16",
    "rollout.max_answer_tokens=400",
    "evaluate.max_prompts=2",
    "evaluate.samples_of={}",
]


@pytest.mark.e2e
def test_a_small_cluster(tmp_path):
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.scale.run", "--gpus", "16", "--steps", "2", "--prompts", "150"]
    ended = subprocess.run([*command, "--json", file, *SMALL], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "planned step s" in ended.stdout
    (result,) = json.loads(file.read_text())
    step = result["spent"]["2"]
    assert step["score"]["messages"] == {"rank.score": 16}
    assert step["train"]["messages"] == {"rank.train_step": 16, "rank.first_logprobs": 16}
    sync, rounds = step["sync"]["messages"], result["spent"]["1"]["sync"]["messages"]["rank.send_bucket"] // 16
    assert sync["rank.send_bucket"] == 16 * rounds and sync["engine.update"] == 4 * rounds > 0
    # Played in the planner's seconds, by calls that come one after the other.
    planned = result["planned_s"]["rollout"]
    assert 0.5 * planned < step["rollout"]["simulated_s"] < 2 * planned
    assert step["rollout"]["messages"].keys() == {"engine.advance"}
    assert result["driver_bytes"] > 100e6 and result["store_bytes"] > 0


@pytest.mark.e2e
def test_sampling_as_it_was_before_runs_on_the_stream_of_today():
    """The page's comparison overrides a part of the stream; and leaves no clock of its own behind in this process."""
    real = stream.ray, stream.time, rounds.MARGIN
    before = next(a for a in sampling.ARRANGEMENTS if a.places == "groups")
    assert sampling.play(before, 3)["rounds"] == 1
    assert (stream.ray, stream.time, rounds.MARGIN) == real == (ray, time, rounds.MARGIN)
