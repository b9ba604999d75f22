"""`python -m megatron_nft.train` as a user starts it: a short run, its files, and how runs end that can't go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import uuid
from pathlib import Path

import pytest

from megatron_nft.data.prompts import load_prompts, load_tokenizer

pytestmark = pytest.mark.e2e
SMALL = ["train.groups_per_step=8", "train.updates_per_step=2", "evaluate.max_prompts=24", "evaluate.samples=0"]


def start(tmp_path, *overrides, module="megatron_nft.train"):
    """A training process in a session of its own, marked in its environment so that its children can be found."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", module, "launch/recipes/quickstart.toml", f"run.dir={tmp_path}", *SMALL,
         *overrides],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "MEGATRON_NFT_TEST_MARK": mark},
        # A shell's background jobs, and all below them, ignore Ctrl-C; a user's terminal doesn't.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    return process, mark


def living(mark):
    """Living processes that carry the mark: pid -> command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes() and "State:\tZ" not in (entry / "status").read_text():
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def survivors(mark):
    """Their command lines."""
    return list(living(mark).values())


def assert_no_survivors(mark):
    deadline = time.monotonic() + 15
    while survivors(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert survivors(mark) == []


def test_two_steps_leave_a_whole_run_folder(tmp_path):
    process, mark = start(tmp_path, "train.steps=2", "observe.save_batches=true", "actor.pp=2", "actor.tp=1",
                          "cluster.placement=colocated", "weights.canary=true", "observe.wandb_mode=offline",
                          'observe.trackers=["tensorboard", "wandb"]')  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_no_survivors(mark)
    assert re.search(r"^step 2/2 \| .*loss .*gap .*sync", out, re.M)
    assert "greedy accuracy" in out and "given up" not in out

    run = tmp_path / "quickstart"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2)
    ]  # fmt: skip
    steps = [r for r in records if r["kind"] == "step"]
    assert all(r["rollout/logprob_gap_mean"] < 1e-4 for r in steps)
    assert all(r["weights/bytes"] == _bytes_of_weights(run / "hf") for r in steps)
    assert [r["rollout/policy_version"] for r in steps] == [0, 1]
    assert tomllib.loads((run / "recipe.toml").read_text())["actor"]["pp"] == 2
    assert (run / "report.html").stat().st_size > 10_000
    assert all(list(run.glob(f"tensorboard/{axis}/events*")) for axis in ("by_step", "by_update"))
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert {p.name for p in (run / "batches").iterdir()} == {"step_1.npz", "step_2.npz"}
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert {"prompt", "answer", "policy_version"} <= rollouts[0].keys()
    _transformers_gives_the_same_greedy_answers(run, rollouts)


def _bytes_of_weights(folder):
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    return total


def _transformers_gives_the_same_greedy_answers(run, rollouts):
    """The last evaluation's answers, again, from hf/ alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run / "hf")
    tokenizer = load_tokenizer(run / "hf")
    from megatron_nft.config import load_config

    data = load_config("launch/recipes/quickstart.toml").data
    prompts = {p.prompt_id: p for p in load_prompts(data.held_out, tokenizer, data).prompts}
    last = [r for r in rollouts if r["source"] == "evaluation" and r["step"] == 2]
    assert len(last) >= 8
    for rollout in last:
        tokens = torch.from_numpy(prompts[rollout["prompt_id"]].token_ids_P).long()[None]
        answer = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=64)
        assert tokenizer.decode(answer[0, tokens.shape[1] :], skip_special_tokens=True) == rollout["answer"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_an_interrupted_run_leaves_no_process_behind(tmp_path, how):
    process, mark = start(tmp_path, "train.steps=1000", "train.evaluate_every=0")
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    else:
        pytest.fail(process.stderr.read())
    time.sleep(1.0)  # into step 2
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as the terminal does: to the driver and all that share its process group
    else:
        process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    ending = {signal.SIGINT: "interrupted", signal.SIGTERM: "the same command goes on from the last checkpoint"}[how]
    assert err.strip().endswith(ending) and "Traceback" not in err
    assert "interrupted" in out
    assert_no_survivors(mark)
    assert (tmp_path / "quickstart" / "report.html").exists()


def test_no_mixed_group_in_time(tmp_path):
    # At this temperature all answers of a group are the same, so none is mixed.
    process, mark = start(tmp_path, "rollout.temperature=1e-4", "rollout.max_sampling_rounds=2", "data.held_out=[]")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.search(r"step 1: \d+ of \d+ groups had right and wrong answers after 2 rounds", err)
    assert "train.groups_per_step = 8 are needed" in err and "raise rollout.max_sampling_rounds" in err
    assert "Traceback" not in err
    assert_no_survivors(mark)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor.tensor=2", "unknown key"),
        ("model.path=/nowhere", "no such folder"),
        ('data.train=["/nowhere.parquet"]', "/nowhere.parquet"),
    ],
)
def test_bad_input_ends_with_2_before_anything_starts(tmp_path, override, message):
    process, _ = start(tmp_path, override)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: ") and message in err and "Traceback" not in err
