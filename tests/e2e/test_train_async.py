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
from tests.conftest import RUN, TAKES_MINUTES
from tests.e2e.driver import (
    as_soon_as,
    assert_no_survivors,
    has_step,
    kill,
    records,
    refused,
    same_bits,
    start,
    steps,
    wait_for,
)

pytestmark = pytest.mark.e2e
SHORT = ["evaluate.max_prompts=12", "rollout.kv_cache_gib=0.25"]
ASYNC = "megatron_nft.train_async"


def test_without_staleness_every_number_is_the_synchronous_runs(straight, shared, tmp_path):
    ended = shared.train(tmp_path, *RUN, "train.steps=3", "rollout.max_staleness=0", is_ahead=True)
    assert ended.status == 0, ended.err
    run = tmp_path / "quickstart"
    assert records(run) == records(straight)[: len(records(run))] and has_step(run, 3)
    answers = [
        [line for line in (path / "rollouts.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 3]
        for path in (run, straight)
    ]
    assert answers[0] == answers[1]
    same_bits(run / "checkpoints" / "step_3", straight / "checkpoints" / "step_3")


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


def test_ahead_of_the_trainer_killed_and_resumed_nothing_is_trained_twice_and_nothing_graded_is_lost(
    shared_later, tmp_path
):
    process, mark = start(tmp_path, *SHORT, *LONG, module=ASYNC)
    wait_for(process, "step 5/")
    kill(process, mark)
    folder = tmp_path / "quickstart"
    checkpoint = folder / "checkpoints" / "step_4"
    assert checkpoint.exists()
    ready = ready_groups(checkpoint)
    assert len(ready) >= 4, "the trainer is the slower side here"
    state = json.loads((checkpoint / "run.json").read_text())["sampling"]["queue"]
    assert state["num_taken"] == 4

    ended = shared_later().train(tmp_path, *SHORT, *LONG, is_ahead=True)
    assert ended.status == 0, ended.err
    assert f"resumed from {checkpoint}: step 4" in ended.out
    assert "step 5/7" in ended.out and "step 4/7" not in ended.out
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
def test_usr1_saves_what_has_been_graded_since_the_last_step(shared_later, tmp_path):
    process, mark = start(tmp_path, *SHORT, *LONG, "checkpoint.every=100", module=ASYNC)
    wait_for(process, "step 2/")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert_no_survivors(mark)
    folder = tmp_path / "quickstart"
    saved = json.loads((folder / "checkpoints" / "latest" / "run.json").read_text())
    assert saved["step"] in (2, 3) and saved["sampling"]["queue"]["num_taken"] == saved["step"]
    last = saved["step"] + 1
    ended = shared_later().train(tmp_path, *SHORT, *LONG, f"train.steps={last}", "checkpoint.every=100", is_ahead=True)
    assert ended.status == 0 and f"step {last}/" in ended.out, ended.err
    assert_nothing_is_trained_twice(batches(folder))


def test_a_trainer_rank_that_is_killed_is_started_again_and_nothing_is_trained_twice(shared, tmp_path):
    folder, pid = tmp_path / "quickstart", shared.pid("actor rank 0")
    with as_soon_as(lambda: has_step(folder, 3), lambda: os.kill(pid, signal.SIGKILL)):
        ended = shared.train(
            tmp_path, *SHORT, *LONG, "rollout.on_sync=restart", "algorithm.old_logprobs=engine", is_ahead=True
        )
    assert ended.status == 0, ended.err
    assert re.search(r": actor rank \d died", ended.out) and re.search(r"resumed from \S+/step_[24]: step", ended.out)
    assert [record["step"] for record in steps(folder)] == [1, 2, 3, 4, 5, 6, 7]
    prompts = []
    for step in range(1, 8):
        sequences = [s for update in load_batch(folder / "batches" / f"step_{step}.npz") for s in update]
        prompts += {s.token_ids_T[: -s.num_answer_tokens].tobytes() for s in sequences}
    assert len(prompts) == len(set(prompts)) == 7 * 4


def test_no_mixed_group_ends_the_run_with_the_remedy(shared, tmp_path):
    ended = shared.train(
        tmp_path,
        *SHORT,
        "rollout.max_answer_tokens=2",
        "verdict.max_unparsable=1",
        "rollout.max_sampling_rounds=1",
        "data.held_out=[]",
        is_ahead=True,
    )
    assert ended.status == 1
    assert re.search(r"step \d: \d+ of \d+ groups had right and wrong answers, ", ended.err)
    assert "raise rollout.max_sampling_rounds" in ended.err


def test_shared_gpus_are_refused(tmp_path):
    ended = refused(tmp_path, "cluster.placement=colocated", is_ahead=True)
    assert ended.status == 2 and 'set "split", or use megatron_nft.train' in ended.err
