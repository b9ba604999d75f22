"""`python -m megatron_nft.train`, ended from outside and started again: as if it had never stopped.

Every part is real: engines sample again after a resume what they would have sampled.
"""

import json
import os
import re
import shutil
import signal

import pytest

from tests.conftest import RUN
from tests.e2e.driver import (
    all_records,
    assert_no_survivors,
    kill,
    last_pid,
    order,
    records,
    refused,
    same_bits,
    start,
    steps,
    wait_for,
    wait_until,
    without_clock,
)

pytestmark = pytest.mark.e2e
SIX = [*RUN, "train.steps=6"]
BEHIND = [*SIX, "evaluate.in_background=true"]


def test_whatever_ends_it_six_steps_are_six_steps(straight, shared_later, tmp_path):
    """Beside evaluations in the background: a rank killed before the first checkpoint, everything killed two steps
    after one, SIGUSR1 while a step trains; then to the end. Each number, answer and bit is that of the run `straight`,
    which nobody disturbed, and which evaluated between its steps."""
    run = tmp_path / "quickstart"
    _kill_a_rank_and_then_everything(tmp_path, run)
    assert [step for step in range(1, 6) if "time/evaluate_s" in steps(run)[step - 1]] == [4], "not within step 4"
    assert not any("time/evaluate_s" in record for record in steps(straight))
    _stop_in_step_5(tmp_path, run)
    ended = shared_later().train(tmp_path, *BEHIND)
    assert ended.status == 0, ended.err
    assert f"resumed from {run}/checkpoints/step_5: step 5" in ended.out and "step 5/6" not in ended.out
    assert records(run) == records(straight)
    same_bits(run / "checkpoints" / "step_6", straight / "checkpoints" / "step_6")
    assert (run / "rollouts.jsonl").read_text() == (straight / "rollouts.jsonl").read_text()
    for path in [*(straight / "hf").glob("*.safetensors"), *(straight / "batches").iterdir()]:
        assert (run / path.relative_to(straight)).read_bytes() == path.read_bytes()
    assert os.readlink(run / "checkpoints" / "latest") == "step_6"


def _kill_a_rank_and_then_everything(folder, run):
    process, mark = start(folder, *BEHIND)
    wait_for(process, "step 2/")
    engine = last_pid(run, "engine_0")
    os.kill(last_pid(run, "actor_rank_1"), signal.SIGKILL)
    said = []
    for line in process.stdout:
        said.append(line)
        if without_clock(line).startswith("step 5/"):
            break
    kill(process, mark)
    said = "".join(said)
    assert re.search(r": actor rank 1 died: ", said), said + process.stderr.read()
    assert f"what they said is in {run}/logs/attempt_1/{{actor_rank_1.log}}" in said
    assert "starting all ranks again, from the last checkpoint ..." in said and "resumed from" not in said
    assert last_pid(run, "engine_0") == engine, "an engine that lives was started again"
    assert order(run)[-1] == ("step", 5)


def _stop_in_step_5(folder, run):
    scored = run / "batches" / "step_5.npz"  # written once the step has trained
    scored.unlink()
    process, mark = start(folder, *BEHIND)
    wait_until(scored.exists, process, limit_s=300.0)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert err.strip().endswith("by SIGUSR1; the same command goes on from the last checkpoint")
    assert "Traceback" not in err
    assert_no_survivors(mark)
    assert f"resumed from {run}/checkpoints/step_3: step 3" in out and "step 4/6" in out and "step 3/6" not in out
    assert os.readlink(run / "checkpoints" / "latest") == "step_5", "not a due one"
    assert all_records(run)[-1]["step"] == 5


def test_it_goes_on_in_another_layout(straight, shared, tmp_path):
    run = tmp_path / "quickstart"
    shutil.copytree(straight, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step_6")
    ended = shared.train(tmp_path, *SIX, "actor.tp=1", "actor.pp=2", "checkpoint.keep_last=3")
    assert ended.status == 0, ended.err
    assert f"{run}/checkpoints/step_3: step 3" in ended.out
    (changes,) = re.findall("changed since the checkpoint: .*", ended.out, re.M)
    assert "actor.tp 2 -> 1; actor.pp 1 -> 2; checkpoint.keep_last 2 -> 3" in changes
    assert order(run) == order(straight)
    for record, expected in zip(steps(run), steps(straight), strict=True):
        if record["step"] <= 4:  # later, a rounding error may become another token
            for name in ("nft/loss", "actor/grad_norm", "nft/correct_rate"):
                assert record[name] == pytest.approx(expected[name], rel=1e-4), (record["step"], name)


def test_another_model_is_refused_with_the_difference(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "quickstart", symlinks=True)
    model = tmp_path / "model"
    shutil.copytree("tests/assets/quickstart/model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    ended = refused(tmp_path, *RUN, f"model.path={model}", "actor.pp=1")
    assert ended.status == 2
    assert f"rms_norm_eps {config['rms_norm_eps']} in the checkpoint, 0.001 now" in ended.err


def test_other_prompts_are_refused(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "quickstart", symlinks=True)
    ended = refused(tmp_path, *RUN, "train.steps=8", "run.seed=5")
    assert ended.status == 2 and "set run.seed = 1" in ended.err


def test_a_megatron_checkpoint_is_a_model_to_begin_with(straight, shared, tmp_path):
    """A new run from another's checkpoint: the engines get their weights from the actor."""
    model = straight / "checkpoints" / "step_6"
    ended = shared.train(
        tmp_path, *RUN, "train.steps=1", f"model.path={model}", "checkpoint.every=0", "data.held_out=[]"
    )
    assert ended.status == 0, ended.err
    assert "resumed" not in ended.out
    run = tmp_path / "quickstart"
    (record,) = records(run)
    assert record["rollout/logprob_gap_mean"] < 1e-5 and record["rollout/policy_version"] == 0
    assert (run / "hf" / "config.json").exists() and not (run / "checkpoints").exists()


def test_a_stored_step_comes_out_again_on_fewer_ranks(straight, shared):
    done = shared.replay(straight / "recipe.toml", "--step", "5", "actor.tp=1")
    assert done.status == 0, done.err
    first, *lines = done.out.splitlines()
    assert first.startswith(f"from {straight}/checkpoints/step_3 (tp 1 x pp 1") and lines[1].startswith("step 5: ")
    assert "nft/loss  " in done.out and "DIFFERS" not in done.out


def test_a_replay_sees_another_setting(straight, shared):
    done = shared.replay(straight / "recipe.toml", "--step", "1", "actor.tp=1", "algorithm.normalize=2")
    assert done.status == 1 and "DIFFERS" in done.out, done.err


def test_a_replay_of_what_was_not_kept(straight, shared):
    done = shared.replay(straight / "recipe.toml", "--step", "9", "actor.tp=1")
    assert done.status == 2 and "has no step 9" in done.err
