"""`python -m megatron_nft.train_async`: the synchronous run's numbers without staleness; and whatever is slow, dies or
runs out with it. Every part is real.
"""

import json
import os
import re
import signal

import numpy as np
import pytest

from megatron_nft.observe.batches import load_batch
from tests.conftest import TAKES_MINUTES
from tests.e2e.test_resume import kill, records, wait_for
from tests.e2e.test_train import assert_no_survivors, living, start

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
    assert both[0] == both[1]
    answers = [(path / "rollouts.jsonl").read_text() for path in (expected, folder)]
    assert answers[0] == answers[1]
    weights = [next((path / "hf").glob("*.safetensors")).read_bytes() for path in (expected, folder)]
    assert weights[0] == weights[1]


def batches(folder):
    """Step -> sequences that it trained on."""
    return {
        int(path.stem.removeprefix("step_")): [s for update in load_batch(path) for s in update]
        for path in (folder / "batches").iterdir()
    }


def assert_nothing_is_trained_twice(trained, groups_per_step=4):
    """Every group has a prompt of its own: the runs here stay within an epoch of different prompts."""
    prompts = [{s.token_ids_T[: s.num_prompt_tokens].tobytes() for s in step} for step in trained.values()]
    assert [len(of_step) for of_step in prompts] == [groups_per_step] * len(trained)
    assert len(set().union(*prompts)) == groups_per_step * len(trained)


def ready_groups(checkpoint):
    """Of a checkpoint: per group that waits to be trained on, the token ids of its answers."""
    with np.load(checkpoint / "groups.npz") as file:
        answers = np.split(file["token_ids"], np.cumsum(file["num_tokens"])[:-1])
        ends = np.cumsum(file["num_rollouts"]).tolist()
        return [answers[a:b] for a, b, ready in zip([0, *ends], ends, file["is_ready"], strict=False) if ready]


def is_among(sequences, answer_A):
    return any(s.token_ids_T[s.num_prompt_tokens :].tobytes() == answer_A.tobytes() for s in sequences)


LONG = ["train.steps=7", "train.evaluate_every=0", "train.groups_per_step=4", "rollout.max_staleness=4",
        "checkpoint.every=2", "checkpoint.keep_last=9", "checkpoint.in_background=false", "run.overwrite=false",
        "observe.save_batches=true"]  # fmt: skip


def test_ahead_of_the_trainer_killed_and_resumed_nothing_is_trained_twice_and_nothing_graded_is_lost(tmp_path):
    process, mark = start(tmp_path, *SHORT, *LONG, module="megatron_nft.train_async")
    wait_for(process, "step 5/")
    kill(process, mark)
    folder = tmp_path / "quickstart"
    checkpoint = folder / "checkpoints" / "step_4"
    assert checkpoint.exists()
    ready = ready_groups(checkpoint)
    assert len(ready) >= 4, "the trainer is the slower side here"
    state = json.loads((checkpoint / "run.json").read_text())["sampling"]["queue"]
    assert state["num_taken"] == 4

    out, _, _ = run(tmp_path, *LONG)
    assert f"resumed from {checkpoint}: step 4" in out and "step 5/7" in out and "step 4/7" not in out
    trained = batches(folder)
    assert sorted(trained) == [1, 2, 3, 4, 5, 6, 7]
    assert_nothing_is_trained_twice(trained)
    later = [sequence for step in (5, 6, 7) for sequence in trained[step]]
    all_steps = steps(folder)
    untrained = [answers for answers in ready if not all(is_among(later, answer) for answer in answers)]
    num_left = 3 * 4 - sum(record["async/groups_dropped"] for record in all_steps[4:])
    assert len(ready) - len(untrained) >= min(len(ready), num_left), "but for those that grew too old, and are counted"
    assert [record["step"] for record in all_steps] == [1, 2, 3, 4, 5, 6, 7]
    assert all_steps[0]["time/wait_s"] > 0.1, "nothing was ready, and the trainer waited"
    assert all_steps[4]["time/wait_s"] < all_steps[0]["time/wait_s"] / 2, "its groups came from the checkpoint"
    assert max(record["async/staleness_max"] for record in all_steps) in (2, 3, 4)
    assert max(record["async/engine_idle_s"] for record in all_steps) > 0.1, "the queue was full"
    assert '"async/staleness_mean"' in (folder / "report.html").read_text()


@TAKES_MINUTES
def test_usr1_saves_what_has_been_graded_since_the_last_step(tmp_path):
    process, mark = start(tmp_path, *SHORT, *LONG, "checkpoint.every=100", module="megatron_nft.train_async")
    wait_for(process, "step 2/")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert_no_survivors(mark)
    folder = tmp_path / "quickstart"
    saved = json.loads((folder / "checkpoints" / "latest" / "run.json").read_text())
    assert saved["step"] in (2, 3) and saved["sampling"]["queue"]["num_taken"] == saved["step"]
    out, _, _ = run(tmp_path, *LONG, f"train.steps={saved['step'] + 1}", "checkpoint.every=100")
    assert f"step {saved['step'] + 1}/" in out
    assert_nothing_is_trained_twice(batches(folder))


def test_a_trainer_rank_that_is_killed_is_started_again_and_nothing_is_trained_twice(tmp_path):
    process, mark = start(tmp_path, *SHORT, *LONG, "rollout.on_sync=restart", "algorithm.old_logprobs=engine",
                          module="megatron_nft.train_async")  # fmt: skip
    wait_for(process, "step 3/")
    os.kill(min(pid for pid, command in living(mark).items() if "_ActorRank" in command), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert re.search(r": actor rank \d died", out) and re.search(r"resumed from \S+/step_[24]: step", out)
    assert_no_survivors(mark)
    folder = tmp_path / "quickstart"
    assert [record["step"] for record in steps(folder)] == [1, 2, 3, 4, 5, 6, 7]
    prompts = []
    for step in range(1, 8):
        sequences = [s for update in load_batch(folder / "batches" / f"step_{step}.npz") for s in update]
        prompts += {s.token_ids_T[: -s.num_answer_tokens].tobytes() for s in sequences}
    assert len(prompts) == len(set(prompts)) == 7 * 4


def test_no_mixed_group_ends_the_run_with_the_remedy(tmp_path):
    _, err, _ = run(tmp_path, "rollout.temperature=1e-4", "rollout.max_sampling_rounds=1", "data.held_out=[]", status=1)
    assert re.search(r"step \d: \d+ of \d+ groups had right and wrong answers after 1 rounds", err)
    assert "raise rollout.max_sampling_rounds" in err and "Traceback" not in err


def test_shared_gpus_are_refused(tmp_path):
    _, err, _ = run(tmp_path, "cluster.placement=colocated", status=2)
    assert 'set "split", or use megatron_nft.train' in err and "Traceback" not in err
