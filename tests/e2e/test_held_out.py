"""A run's evaluations: several benchmarks as in the paper; in the background no run is lost for one. (That it gives the
same answers: test_resume.py.)"""

import json
import os
import signal
import time
from collections import defaultdict

import pyarrow.parquet as pq
import pytest

from tests.conftest import RUN, TAKES_MINUTES
from tests.e2e.driver import all_records, as_soon_as, assert_no_survivors, last_pid, order, start, steps, wait_until

pytestmark = pytest.mark.e2e
LONG = ["evaluate.in_background=true", "evaluate.max_prompts=256", "evaluate.samples=8"]
"""An evaluation that is still under way when step 1 has been scored."""


def is_scored(run):
    """Step 1's batch is written once it is scored; by then the engines evaluate."""
    return (run / "batches" / "step_1.npz").exists()


def wait_until_scored(process, run):
    wait_until(lambda: is_scored(run), process, 280)
    assert order(run) == []


def test_an_engine_that_dies_meanwhile_costs_the_evaluation_only(shared, tmp_path):
    run, pid = tmp_path / "quickstart", shared.pid("engine 0")
    with as_soon_as(lambda: is_scored(run), lambda: os.kill(pid, signal.SIGKILL)):
        ended = shared.train(tmp_path, *RUN, "train.steps=2", *LONG, "evaluate.max_prompts=96")
    assert ended.status == 0, ended.err
    assert "evaluation at step 0 is left out: all engines had to be started again" in ended.out
    assert order(run) == [("step", 1), ("step", 2), ("evaluation", 2)]


@TAKES_MINUTES
def test_a_rank_that_dies_meanwhile_costs_no_evaluation(tmp_path):
    """The run goes back to step 0, whose evaluation comes to its end first, and is not done again."""
    process, mark = start(tmp_path, *RUN, "train.steps=2", *LONG)
    run = tmp_path / "quickstart"
    wait_until_scored(process, run)
    os.kill(last_pid(run, "actor_rank_1"), signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "starting all ranks again, from the last checkpoint ..." in out and out.count("evaluation at step 0 |") == 1
    assert order(run) == [("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2)]
    assert_no_survivors(mark)


@TAKES_MINUTES
def test_a_stop_does_not_wait_for_it(tmp_path):
    process, mark = start(tmp_path, *RUN, "train.steps=6", *LONG)
    run = tmp_path / "quickstart"
    wait_until_scored(process, run)
    asked = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75 and "Traceback" not in err, err
    assert "saving step 1 ..." in out and time.monotonic() - asked < 30
    assert os.readlink(run / "checkpoints" / "latest") == "step_1"
    assert_no_survivors(mark)


# --- as in the paper

SIZES = {"aime24": 4, "math500": 12, "aime25": 3, "amc23": 5, "olympiad": 9, "minerva": 7}
ONCE = ("math500", "olympiad", "minerva")


def six_files(folder):
    """Held-out problems in files of different sizes, under the names that download_data.sh gives the six benchmarks."""
    table, start = pq.read_table("tests/assets/quickstart/held_out.parquet"), 0
    for name, size in SIZES.items():
        pq.write_table(table.slice(start, size), folder / f"{name}.parquet")
        start += size
    return json.dumps([str(folder / f"{name}.parquet") for name in SIZES])


def test_six_benchmarks_weigh_the_same_in_the_average(shared, tmp_path):
    """By hand from every answer, and the authors' warm-up in the steps between: the first at rate 0."""
    ended = shared.train(
        tmp_path, *RUN, f"data.held_out={six_files(tmp_path)}", "evaluate.max_prompts=0", "evaluate.samples=3",
        "evaluate.samples_of={" + ", ".join(f"{name} = 1" for name in ONCE) + "}", "evaluate.greedy=false",
        "train.steps=3", "train.evaluate_every=2", "optimizer.warmup_updates=0", "optimizer.warmup_rollout_steps=2",
        "observe.rollouts_per_step=1000",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    run = tmp_path / "quickstart"
    assert [r["actor/learning_rate"] for r in steps(run)] == pytest.approx([0.0, 2.5e-5, 5e-5])
    rights = defaultdict(list)
    for line in (run / "rollouts.jsonl").read_text().splitlines():
        answer = json.loads(line)
        if answer["source"] == "evaluation":
            name, _, number = answer["prompt_id"].partition("/")
            rights[answer["step"], name, number].append(answer["verdict"] == "right" and not answer["truncated"])
    evaluations = [record for record in all_records(run) if record["kind"] == "evaluation"]
    assert [(e["step"], e["train/updates"]) for e in evaluations] == [(0, 0), (2, 4), (3, 6)]
    for evaluation in evaluations:
        means = {}
        for name, size in SIZES.items():
            its = [r for (step, file, _), r in rights.items() if (step, file) == (evaluation["step"], name)]
            assert len(its) == size and {len(r) for r in its} == {1 if name in ONCE else 3}
            means[name] = sum(sum(r) / len(r) for r in its) / size
            metrics = evaluation["benchmarks"][name]
            assert metrics["eval/avg_at_k"] == pytest.approx(means[name]) and metrics["eval/k"] == len(its[0])
        assert evaluation["eval/average"] == pytest.approx(sum(means.values()) / 6)
        assert evaluation["eval/average_low"] < evaluation["eval/average"] < evaluation["eval/average_high"]
        assert "eval/greedy_accuracy" not in evaluation and "eval/k" not in evaluation
    assert abs(evaluations[0]["eval/average"] - evaluations[0]["eval/avg_at_k"]) > 1e-6, "no mean over prompts"
    assert "evaluation at step 0 | average 0." in ended.out and "mean of benchmarks" in ended.out
    page = (run / "report.html").read_text()
    assert '"published":{"updates":5120,"ends":{"7B NFT":[31.6,51.7],"32B NFT":[29.6,59.2]}}' in page


def test_a_mode_that_finds_no_answer_ends_the_run_before_a_step_is_trained(shared, tmp_path):
    ended = shared.train(tmp_path, *RUN, 'verdict.modes={"quickstart/word_problems" = "dapo_line"}', "data.held_out=[]")
    assert ended.status == 1
    assert (
        "are unparsable by mode 'dapo_line' (no line \"Answer: ...\"" in ended.err
        and ended.err.count("an answer: '") == 3
    )
    assert (
        "has the word 'answer:', and mode 'dapo_line' reads no other" in ended.out
        and order(tmp_path / "quickstart") == []
    )
