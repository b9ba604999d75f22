"""`python -m megatron_nft.train` as a user starts it: a short run, its files, and how runs end that can't go on."""

import json
import os
import re
import signal
import time
import tomllib
from collections import Counter
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest

from megatron_nft.config import load_config
from megatron_nft.data.prompts import load_prompts, load_tokenizer
from megatron_nft.observe.batches import load_batch
from tests.conftest import RUN, TAKES_MINUTES
from tests.e2e.driver import (
    RECIPE,
    all_records,
    assert_no_survivors,
    bytes_of_weights,
    order,
    records,
    refused,
    same_bits,
    start,
    steps,
    wait_for,
)

pytestmark = pytest.mark.e2e


def test_six_steps_leave_a_whole_run_folder(straight):
    out = (straight.parent / "out").read_text()
    assert re.search(r"^\d\d:\d\d:\d\d step 6/6 \| acc .*gap .*loss .*train", out, re.M)
    assert "greedy accuracy" in out and "given up" not in out
    assert order(straight) == [
        ("evaluation", 0), *(("step", step) for step in (1, 2, 3)), ("evaluation", 3),
        *(("step", step) for step in (4, 5, 6)), ("evaluation", 6),
    ]  # fmt: skip
    assert all(r["rollout/logprob_gap_mean"] < 1e-5 for r in steps(straight))
    assert all(r["weights/bytes"] == bytes_of_weights(straight / "hf") for r in steps(straight))
    assert [r["rollout/policy_version"] for r in steps(straight)] == [0, 1, 2, 3, 4, 5]
    assert tomllib.loads((straight / "recipe.toml").read_text())["actor"]["tp"] == 2
    assert (straight / "report.html").stat().st_size > 10_000
    assert {p.name for p in (straight / "batches").iterdir()} == {f"step_{step}.npz" for step in range(1, 7)}
    assert {p.name for p in (straight / "checkpoints").iterdir()} == {"step_3", "step_6", "latest"}
    rollouts = [json.loads(line) for line in (straight / "rollouts.jsonl").read_text().splitlines()]
    assert {"prompt", "answer", "policy_version"} <= rollouts[0].keys()


def test_a_steps_spans_are_the_step_and_its_speed_that_of_its_tokens(straight):
    """The driver's spans, within 3% of the step's time; operations as counted from the tensors' shapes, within 5%."""
    from safetensors import safe_open

    last = steps(straight)[-1]
    events = json.loads((straight / "timeline" / "step_6.json").read_text())["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    seconds = dict.fromkeys(tracks.values(), 0.0)
    for event in (e for e in events if e["ph"] == "X"):
        seconds[tracks[event["tid"]]] += event["dur"] / 1e6
    assert seconds["driver"] == pytest.approx(last["time/step_s"], rel=0.03)
    assert {"engine 0", "graders", "actor rank 0", "actor rank 1"} <= seconds.keys()
    assert all(0 < s <= last["time/step_s"] for s in seconds.values())

    shapes = {}
    for path in (straight / "hf").glob("*.safetensors"):
        with safe_open(path, "np") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    layers = sum(s[0] * s[1] for name, s in shapes.items() if ".layers." in name and len(s) == 2)
    config = json.loads((straight / "hf" / "config.json").read_text())
    depth, width = config["num_hidden_layers"], config["hidden_size"]
    batch = [s for update in load_batch(straight / "batches" / "step_6.npz") for s in update]
    flops = sum(
        6 * layers * s.num_tokens + 6 * depth * width * s.num_tokens**2
        + 6 * width * config["vocab_size"] * s.num_answer_tokens
        for s in batch
    )  # fmt: skip
    assert last["perf/mfu"] == pytest.approx(flops / last["time/train_s"] / 2 / 0.165e12, rel=0.05)
    assert last["engine/running_mean"] > 1 and 0 < last["engine/kv_use_mean"] <= last["engine/kv_use_max"] <= 1
    assert all(0.1 < last[f"memory/host_{phase}_gib"] < 8 for phase in ("rollout", "score", "train", "sync", "driver"))


@pytest.mark.skipif(not find_spec("wandb"), reason="pip install -r requirements-trackers.txt")
def test_trackers_have_it_too(straight):
    assert all(list(straight.glob(f"tensorboard/{axis}/events*")) for axis in ("by_step", "by_update"))
    assert len(list(straight.glob("wandb/offline-run-*/*.wandb"))) == 1


def test_what_is_held_out_is_not_trained_on(straight):
    data = load_config(RECIPE).data
    train, held_out = (
        {p.token_ids_P.tobytes() for p in load_prompts(files, load_tokenizer(straight / "hf"), data).prompts}
        for files in (data.train, data.held_out)
    )
    trained = {
        s.token_ids_T[: s.num_prompt_tokens].tobytes()
        for path in (straight / "batches").iterdir()
        for update in load_batch(path)
        for s in update
    }
    assert len(trained) == 6 * 4 and trained <= train - held_out


def test_transformers_gives_the_same_greedy_answers(straight):
    """The last evaluation's answers, again, from hf/ alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(straight / "hf")
    tokenizer, data = load_tokenizer(straight / "hf"), load_config(RECIPE).data
    prompts = {p.prompt_id: p for p in load_prompts(data.held_out, tokenizer, data).prompts}
    rollouts = map(json.loads, (straight / "rollouts.jsonl").read_text().splitlines())
    last = [r for r in rollouts if r["source"] == "evaluation" and r["step"] == 6]
    assert len(last) >= 8
    for rollout in last:
        tokens = torch.from_numpy(prompts[rollout["prompt_id"]].token_ids_P).long()[None]
        answer = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=64)
        assert tokenizer.decode(answer[0, tokens.shape[1] :], skip_special_tokens=True) == rollout["answer"]


def test_processes_that_have_served_other_runs_give_the_same_run(straight, shared, tmp_path):
    """What other tests of this folder rest on: every number and weight is that of processes of the run's own."""
    shared.train(tmp_path / "other", *RUN, "train.steps=1", "actor.tp=1", "actor.dp=2", "run.seed=2")
    shared.train(tmp_path / "one rank", *RUN, "train.steps=1", "actor.tp=1")
    ended = shared.train(tmp_path, *RUN, "train.steps=3")
    assert ended.status == 0, ended.err
    run = tmp_path / "quickstart"
    assert records(run) == records(straight)[: len(records(run))] and order(run)[-1] == ("evaluation", 3)
    same_bits(run / "checkpoints" / "step_3", straight / "checkpoints" / "step_3")
    threads = shared.threads("actor rank 0")
    shared.train(tmp_path / "another", *RUN, "train.steps=1")
    assert shared.threads("actor rank 0") < threads + 10, "each process group has two or three, while it is held"


def test_stages_on_shared_gpus_sampled_at_another_temperature(straight, shared, tmp_path):
    """The actor scores at the temperature that the engines sample at, after its weights have come to them."""
    ended = shared.train(tmp_path, *RUN, "train.steps=2", "actor.pp=2", "actor.tp=1", "rollout.temperature=0.8",
                         "cluster.placement=colocated", "weights.canary=always", "evaluate.in_background=true",
                         "train.evaluate_every=1")  # fmt: skip
    assert ended.status == 0, ended.err
    two = steps(tmp_path / "quickstart")
    assert [r["rollout/policy_version"] for r in two] == [0, 1]
    assert all(r["rollout/logprob_gap_mean"] < 1e-5 and r["weights/canary_gap"] < 1e-5 for r in two)
    assert all(r["weights/bytes"] == bytes_of_weights(tmp_path / "quickstart" / "hf") for r in two)
    assert order(tmp_path / "quickstart") == [
        ("evaluation", 0), ("step", 1), ("evaluation", 1), ("step", 2), ("evaluation", 2),
    ]  # fmt: skip
    first, alone = (next(r for r in all_records(run) if r["kind"] == "evaluation")
                    for run in (tmp_path / "quickstart", straight))  # fmt: skip
    names = [name for name in alone if name.startswith("eval/")]
    assert names and [first[name] for name in names] == [alone[name] for name in names], "beside the rollouts: the same"


def test_what_a_step_on_shared_gpus_does_not_wait_for_goes_on_after_it(shared, tmp_path):
    """Groups that are answered over a sync, engines asleep in between, are trained on: each token with its policy."""
    with mock.patch.multiple("megatron_nft.cluster.stream", CALL_S=0.0, CALL_S_PER_ENGINE=0.0):  # a decode step a call
        ended = shared.train(tmp_path, *RUN, "train.steps=3", "train.groups_per_step=24", "train.updates_per_step=1",
                             "cluster.placement=colocated", "rollout.tail=keep", "weights.canary=always",
                             "data.held_out=[]")  # fmt: skip
    assert ended.status == 0 and "gap alarm" not in ended.out, ended.err
    run = tmp_path / "quickstart"
    three = steps(run)
    assert sum(step["rollout/groups_cut"] for step in three) > 0, "more answers than the engine has places for"
    assert sum(step["async/groups_carried"] for step in three) > 0 and three[-1]["async/staleness_max"] == 1
    assert all(step["weights/canary_gap"] < 1e-5 for step in three)
    trained = [s for n in (1, 2, 3) for update in load_batch(run / "batches" / f"step_{n}.npz") for s in update]
    answers = Counter(s.token_ids_T[: s.num_prompt_tokens].tobytes() for s in trained)
    assert set(answers.values()) == {load_config(RECIPE).rollout.group_size}, "a group whole, and once"


def test_a_model_that_engines_and_actor_read_differently_never_trains(straight, shared, tmp_path):
    """By default each engine answers before the first step, and the actor scores that; here they agree to 1e-6."""
    ended = shared.train(tmp_path, "weights.canary_gap=1e-12", "data.held_out=[]", "train.steps=1")
    assert ended.status == 1 and not steps(tmp_path / "quickstart") and "step 1/" not in ended.out
    assert re.search(r"canary: engine 0's log-probs are \S+ nats per token from the actor's, weights.canary", ended.err)
    assert "config.json otherwise than the actor" in ended.err
    said = (straight.parent / "out").read_text()
    (gap,) = re.findall(r"canary: engines and actor are (\S+) nats a token apart \| [\d.]+s$", said, re.M)
    assert float(gap) < 1e-5 and not any("weights/canary_gap" in record for record in steps(straight))


def test_a_prompt_that_comes_again_is_sampled_anew(straight, shared, tmp_path):
    """Six prompts, several epochs, and weights that stand still: what differs is the step's seed."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(load_config(RECIPE).data.train[0])
    parquet.write_table(table.slice(0, 6), tmp_path / "six.parquet")
    ended = shared.train(
        tmp_path, *RUN, "train.steps=4", "train.groups_per_step=3", "train.updates_per_step=1", "data.held_out=[]",
        f'data.train=["{tmp_path}/six.parquet"]', "optimizer.learning_rate=1e-20", "checkpoint.every=0",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    for step in steps(tmp_path / "quickstart"):  # of the old log-probs, which no other pass has found
        assert step["nft/ratio_mean"] == step["nft/ratio_max"] == 1 and 0 < step["rollout/logprob_gap_max"] < 1e-4
    answers = {}
    for path in (tmp_path / "quickstart" / "batches").iterdir():
        of_step = {}
        for sequence in (s for update in load_batch(path) for s in update):
            prompt_P, answer_A = np.split(sequence.token_ids_T, [sequence.num_prompt_tokens])
            of_step.setdefault(prompt_P.tobytes(), []).append(answer_A.tobytes())
        for prompt, its_answers in of_step.items():
            answers.setdefault(prompt, []).append(sorted(its_answers))
    again = [visits for visits in answers.values() if len(visits) > 1]
    assert again
    for visits in again:
        assert len(set(map(tuple, visits))) == len(visits)


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=TAKES_MINUTES)], ids=["ctrl-c", "kill"]
)
def test_an_interrupted_run_leaves_no_process_behind(tmp_path, how):
    process, mark = start(tmp_path, *RUN, "train.steps=1000", "data.held_out=[]", "actor.tp=1")
    wait_for(process, "step 1/")
    time.sleep(0.3)  # into step 2
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


def test_no_mixed_group_in_time(shared, tmp_path):
    # All answers are cut off, and so wrong.
    cut_off = ["rollout.max_answer_tokens=2", "verdict.max_unparsable=1"]
    ended = shared.train(tmp_path, *cut_off, "rollout.max_sampling_rounds=1", "data.held_out=[]")
    assert ended.status == 1
    assert re.search(r"step 1: \d+ of \d+ groups had right and wrong answers, ", ended.err)
    assert "train.groups_per_step = 8 are needed" in ended.err and "raise rollout.max_sampling_rounds" in ended.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor.tensor=2", "unknown key"),
        ("model.path=/nowhere", "no such folder"),
        ('data.train=["/nowhere.parquet"]', "/nowhere.parquet"),
    ],
)
def test_bad_input_ends_with_2_before_anything_starts(tmp_path, override, message):
    ended = refused(tmp_path, override)
    assert ended.status == 2
    assert ended.err.startswith("error: ") and message in ended.err
