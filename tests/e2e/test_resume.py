"""`python -m megatron_nft.train`, ended from outside and started again: as if it had never stopped.

Every part is real: engines sample again after a resume what they would have sampled.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch

from checkpoint_tools.megatron_folder import MegatronFolder
from tests.conftest import RUN
from tests.e2e.test_train import assert_no_survivors, living, start

pytestmark = pytest.mark.e2e


def wait_for(process, beginning):
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(process.stderr.read())


def kill(process, mark):
    """As the end of a node: driver, Ray, ranks and engines, without a word."""
    for pid in living(mark):
        with suppress(ProcessLookupError):  # Ray ends some by itself
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert_no_survivors(mark)


def records(run):
    """Of metrics.jsonl, without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "perf/", "weights/")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def same_bits(one, other):
    first, second = MegatronFolder(one), MegatronFolder(other)
    assert first.tensors.keys() == second.tensors.keys() and any("exp_avg" in key for key in first.tensors)
    for key, tensor in first.tensors.items():
        chunks = {chunk.offset: chunk for chunk in second.tensors[key].chunks}
        for chunk in tensor.chunks:
            assert torch.equal(first.read(tensor, chunk), second.read(second.tensors[key], chunks[chunk.offset])), key
    assert first.read_common() == second.read_common()


def test_three_steps_and_a_kill_and_three_steps_are_six_steps(straight, tmp_path):
    process, mark = start(tmp_path, *RUN, "train.steps=6")
    wait_for(process, "step 5/")
    kill(process, mark)
    run = tmp_path / "quickstart"
    assert [record["step"] for record in records(run)][-1] == 5
    process, mark = start(tmp_path, *RUN, "train.steps=6")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"resumed from {run}/checkpoints/step_3: step 3" in out and "step 4/6" in out and "step 3/6" not in out
    assert_no_survivors(mark)
    assert records(run) == records(straight)
    same_bits(run / "checkpoints" / "step_6", straight / "checkpoints" / "step_6")
    theirs = (straight / "rollouts.jsonl").read_text().splitlines()
    assert (run / "rollouts.jsonl").read_text().splitlines() == theirs
    for path in [*(straight / "hf").glob("*.safetensors"), *(straight / "batches").iterdir()]:
        assert (run / path.relative_to(straight)).read_bytes() == path.read_bytes()
    assert os.readlink(run / "checkpoints" / "latest") == "step_6"


def test_usr1_while_a_step_trains_saves_it_and_the_run_goes_on_in_another_layout(straight, tmp_path):
    process, mark = start(tmp_path, *RUN, "train.steps=6")
    wait_for(process, "step 4/")
    deadline = time.monotonic() + 60
    while not (tmp_path / "quickstart" / "batches" / "step_5.npz").exists():  # written just before
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert (
        err.strip().endswith("by SIGUSR1; the same command goes on from the last checkpoint") and "Traceback" not in err
    )
    assert_no_survivors(mark)
    run = tmp_path / "quickstart"
    saved = int(os.readlink(run / "checkpoints" / "latest").removeprefix("step_"))
    assert saved == 5 == records(run)[-1]["step"], "not a due one"
    process, mark = start(tmp_path, *RUN, "train.steps=6", "actor.tp=1", "actor.pp=2", "checkpoint.keep_last=3")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"step_{saved}: step {saved}" in out
    assert "changed since the checkpoint: actor.tp 2 -> 1; actor.pp 1 -> 2; checkpoint.keep_last 2 -> 3" in out
    assert [(r["kind"], r["step"]) for r in records(run)] == [(r["kind"], r["step"]) for r in records(straight)]
    for record, expected in zip(records(run), records(straight), strict=True):
        if record["kind"] == "step" and record["step"] <= saved + 1:  # later, a rounding error may become another token
            for name in ("nft/loss", "actor/grad_norm", "nft/correct_rate"):
                assert record[name] == pytest.approx(expected[name], rel=1e-4), (record["step"], name)


def test_another_model_is_refused_with_the_difference(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "quickstart", symlinks=True)
    model = tmp_path / "model"
    shutil.copytree("tests/assets/quickstart/model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    process, _ = start(tmp_path, *RUN, f"model.path={model}", "actor.pp=1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err
    assert f"num_hidden_layers {config['num_hidden_layers']} in the checkpoint, 3 now" in err


def test_other_prompts_are_refused(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "quickstart", symlinks=True)
    process, _ = start(tmp_path, *RUN, "train.steps=8", "run.seed=5")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "set run.seed = 1" in err and "Traceback" not in err
    assert "ready" not in out


def test_a_megatron_checkpoint_is_a_model_to_begin_with(straight, tmp_path):
    """A new run from another's checkpoint: the engines get their weights from the actor."""
    model = straight / "checkpoints" / "step_6"
    process, mark = start(
        tmp_path, *RUN, "train.steps=1", f"model.path={model}", "checkpoint.every=0", "data.held_out=[]"
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "resumed" not in out
    (record,) = records(tmp_path / "quickstart")
    assert record["rollout/logprob_gap_mean"] < 1e-5 and record["rollout/policy_version"] == 0
    assert (tmp_path / "quickstart" / "hf" / "config.json").exists()
    assert not (tmp_path / "quickstart" / "checkpoints").exists()
    assert_no_survivors(mark)


def replay(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_a_stored_step_comes_out_again_on_fewer_ranks(straight):
    recipe = straight / "recipe.toml"
    done = replay("megatron_nft.train", recipe, "--replay", "5", "actor.tp=1")
    assert done.returncode == 0, done.stderr
    first, *steps = done.stdout.splitlines()
    assert first.startswith(f"from {straight}/checkpoints/step_3 (tp 1 x pp 1") and steps[1].startswith("step 5: ")
    assert "nft/loss  " in done.stdout and "DIFFERS" not in done.stdout


def test_a_replay_sees_another_setting(straight):
    done = replay("megatron_nft.replay", straight / "recipe.toml", "--step", "1", "actor.tp=1", "algorithm.normalize=2")
    assert done.returncode == 1 and "DIFFERS" in done.stdout, done.stderr


def test_a_replay_of_what_was_not_kept(straight):
    done = replay("megatron_nft.replay", straight / "recipe.toml", "--step", "9", "actor.tp=1")
    assert done.returncode == 2 and "has no step 9" in done.stderr
