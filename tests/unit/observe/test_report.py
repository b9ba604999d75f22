"""A report as the training loop uses it: what reaches the terminal and the run folder, and what is refused."""

import io
import json
import math
import os
import re
import signal
import time
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_nft.config import Config, RecipeError
from megatron_nft.observe import report as report_module
from megatron_nft.observe.answers import PageAnswers, choose_answers
from megatron_nft.observe.metrics import UnknownMetricError
from megatron_nft.observe.records import read_step_reports
from megatron_nft.observe.report import Report
from megatron_nft.run.stop import StopRequested
from megatron_nft.types import TrainBatch, TrainSequence


@pytest.fixture
def opened(make_config):
    """A report, the stream that it prints to, and its folder."""
    config, stream = make_config(), io.StringIO()
    report = Report(config, stream)
    yield report, stream, config.run_dir
    report.close("done")


def read_jsonl(path):
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


CLOCK = r"\d\d:\d\d:\d\d "
"""Before every line of a log."""


def test_the_step_line_of_a_log(opened, make_group):
    report, stream, _ = opened
    with report.step(12):
        with report.stage("rollout", total=3, unit="answers") as progress:
            progress.update(3)
            time.sleep(0.02)
        report.add_rollouts([make_group("right", "wrong", "error")])
        report.add_rollouts([make_group("right", "right", "right")])  # a second sampling round
        report.add({"nft/loss": 0.01234, "rollout/logprob_gap_mean": 2.1e-6, "actor/grad_norm": 0.84})
        report.add({"actor/learning_rate": 2e-4})
    assert re.fullmatch(
        CLOCK + r"step 12/40 \| right   80% \| length     20 \| cut   0% \| gap 2e-06 \| tok/s +\d+ \| time   0\.\ds "
        r"\| ETA +\d+s \| ends  \d\d:\d\d \| loss   0\.0123 \| mixed      1/2 \| grad  0\.84 \| rate 2\.0e-04 "
        r"\| update     12/40 \| rollout 0\.\ds\n",
        stream.getvalue(),
    )


def test_a_step_without_metrics_still_has_a_line(opened):
    report, stream, _ = opened
    with report.step(40):
        pass
    assert re.fullmatch(
        CLOCK + r"step 40/40 \| time   0\.0s \| ETA     0s \| ends  \d\d:\d\d \| update     40/40\n", stream.getvalue()
    )


def test_the_time_left_is_that_of_the_steps_left_at_the_latest_pace(make_config, monkeypatch):
    now, stream = [0.0], io.StringIO()
    monkeypatch.setattr(report_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    report = Report(make_config(), stream)
    for step in range(1, 31):
        with report.step(step):
            now[0] += 100.0 if step == 1 else 2.0
        now[0] += 1.0  # an evaluation, say
    report.close("done")
    left = re.findall(r"step (\d+)/40 .* ETA +(\w+) ", stream.getvalue())
    assert left[0] == ("1", "1h05m") and left[-1] == ("30", "30s")


def test_records_are_valid_json_even_with_nan(opened):
    report, _, folder = opened
    with report.step(1):
        report.add({"nft/loss": math.nan, "nft/ratio_max": np.float32("inf"), "actor/grad_norm": np.float32(0.5)})
    (record,) = read_jsonl(folder / "metrics.jsonl")  # readable while the run goes on
    assert (record["step"], record["kind"]) == (1, "step")
    assert record["nft/loss"] is None and record["nft/ratio_max"] is None and record["actor/grad_norm"] == 0.5
    assert record["time"].endswith("+00:00") and record["time/step_s"] >= 0


def test_stage_times_add_up_and_give_throughput(opened, make_group):
    report, _, folder = opened
    with report.step(1):
        for _ in range(2):
            with report.stage("rollout"):
                report.add_rollouts([make_group("right", "wrong")])
    (record,) = read_jsonl(folder / "metrics.jsonl")
    assert record["perf/rollout_tokens_per_s"] == pytest.approx(60 / record["time/rollout_s"])


def test_unknown_names_are_refused_everywhere(opened):
    report, _, _ = opened
    with pytest.raises(UnknownMetricError), report.step(1):
        report.add({"nft/lose": 1.0})
    with pytest.raises(UnknownMetricError):
        report.add_evaluation(1, {"eval/accuracy": 1.0})
    with pytest.raises(UnknownMetricError), report.stage("coffee"):
        pass


def test_a_metric_has_one_value_a_step(opened):
    report, _, _ = opened
    with report.step(1):
        report.add({"nft/loss": math.nan})
        report.add({"nft/loss": math.nan})
        with pytest.raises(ValueError, match=r"nft/loss = 2.0 was already recorded as nan"):
            report.add({"nft/loss": 2.0})


def test_adding_outside_a_step_is_refused(opened):
    report, _, _ = opened
    with pytest.raises(RuntimeError, match="no step to add to"):
        report.add({"nft/loss": 1.0})


def test_a_failed_step_leaves_no_record_but_its_answers(opened, make_group):
    report, stream, folder = opened
    with pytest.raises(KeyError), report.step(1):
        report.add_rollouts([make_group("right", "wrong")])
        raise KeyError("actor died")
    assert read_jsonl(folder / "metrics.jsonl") == [] and stream.getvalue() == ""
    assert len(read_jsonl(folder / "rollouts.jsonl")) == 2


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_stop_leaves_a_record_of_a_step_that_was_trained(opened, make_group, is_trained):
    report, stream, folder = opened
    with pytest.raises(StopRequested), report.step(1):
        report.add_rollouts([make_group("right", "wrong")])
        if is_trained:
            report.trained()
        raise StopRequested(signal.SIGUSR1)
    assert [record["step"] for record in read_jsonl(folder / "metrics.jsonl")] == [1] * is_trained
    assert bool(re.match(CLOCK + "step 1/", stream.getvalue())) == is_trained
    with pytest.raises(StopRequested), report.step(2):
        raise StopRequested(signal.SIGUSR1)
    assert len(read_jsonl(folder / "metrics.jsonl")) == is_trained


def test_answers_are_written_with_what_a_reader_needs(opened, make_group):
    report, _, folder = opened
    with report.step(5):
        report.add_rollouts([make_group("right", "wrong+cut", text="line\u2028break \ud800")])
    right, wrong = read_jsonl(folder / "rollouts.jsonl")
    assert wrong == {
        "step": 5,
        "source": "train",
        "prompt_id": "sums/0",
        "prompt": "1+1=",
        "answer": "line\u2028break \ud800 #1",
        "ground_truth": "2",
        "verdict": "wrong",
        "detail": "2",
        "rule": "",
        "truncated": True,
        "policy_version": 3,
        "correct_rate": 0.5,
        "num_tokens": 20,
        "place": 1,
        "group": [["right", 10, "2"], ["wrong", 20, "2"]],
        "tokens": ["0"] * 20,
        "engine_logprobs": [0.0] * 20,
    }
    assert right["verdict"] == "right" and right["num_tokens"] == 10


def test_a_trained_answer_has_the_actors_log_probs_beside_the_engines(opened, make_group):
    report, _, folder = opened
    report.token_text = lambda token: f"<{token}>"
    group = make_group("right", "wrong")
    trained = [
        TrainSequence(
            token_ids_T=np.concatenate([group.prompt.token_ids_P, rollout.token_ids_A]), num_prompt_tokens=4,
            verdict=1.0, correct_rate=0.5, engine_logprobs_A=rollout.engine_logprobs_A,
            old_logprobs_A=rollout.engine_logprobs_A - 0.25,
        )
        for rollout in group.rollouts[:1]
    ]  # fmt: skip
    with report.step(1):
        report.add_rollouts([group])
        report.add_batch(TrainBatch.of([[[trained]]]))
    right, wrong = read_jsonl(folder / "rollouts.jsonl")
    assert right["tokens"] == ["<0>"] * 10 and right["actor_logprobs"] == [-0.25] * 10
    assert right["engine_logprobs"] == [0.0] * 10 and "actor_logprobs" not in wrong


def test_chosen_answers_are_seeded_and_half_right_where_possible(make_group):
    groups = [make_group(*["right"] * 2, *["wrong"] * 6, name=f"sums/{i}") for i in range(4)]

    def chosen(count, seed=1):
        return choose_answers(groups, count, step=1, source="train", seed=seed)

    assert chosen(6) == chosen(6) != chosen(6, seed=2)
    assert [a["verdict"] for a in chosen(6)] == ["right"] * 3 + ["wrong"] * 3
    assert sum(a["verdict"] == "right" for a in chosen(30)) == 8  # all that there are, so that 30 come together
    assert len(chosen(30)) == 30 and len(chosen(99)) == 32 and chosen(0) == []


def test_page_answers_stay_bounded_and_keep_first_and_last(make_group):
    answers = PageAnswers(max_chars=6000)
    for step in range(100):
        answers.add(choose_answers([make_group("right", text="x" * 90)], 1, step=step, source="train", seed=1))
    steps = [record["step"] for record in answers.records]
    assert steps[0] == 0 and steps[-1] == 99 and 5 < len(steps) <= 20 and steps == sorted(steps)


def test_evaluations_before_between_and_inside_steps(opened, make_group):
    report, stream, folder = opened
    with report.stage("evaluate", total=1, unit="prompts"):
        pass
    report.add_evaluation(0, {"eval/greedy_accuracy": 0.25, "eval/prompts": 500}, samples=[make_group("right")])
    with report.step(1):
        report.add_evaluation(1, {"eval/greedy_accuracy": 0.3, "eval/avg_at_k": 0.2})
    first, second, step = read_jsonl(folder / "metrics.jsonl")
    assert [r["kind"] for r in (first, second, step)] == ["evaluation", "evaluation", "step"]
    assert "time/evaluate_s" in first and "time/evaluate_s" not in step
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(CLOCK + r"evaluation at step 0 \| greedy 0\.250 \| 500 prompts \| 0\.0s", lines[0])
    assert re.fullmatch(CLOCK + r"evaluation at step 1 \| greedy 0\.300 \(\+0\.050\) \| avg@k 0\.200", lines[1])
    assert read_jsonl(folder / "rollouts.jsonl")[0]["source"] == "evaluation"


def test_the_recipe_is_written(opened):
    _, _, folder = opened
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    assert Config.model_validate(recipe).run_dir == folder


def record_two_steps(config, make_group):
    report = Report(config, io.StringIO())
    report.add_evaluation(0, {"eval/greedy_accuracy": 0.25}, [make_group("right")])
    for step in (1, 2):
        with report.step(step):
            report.add({"nft/loss": step * 1.5, "nft/kl": math.nan})
            report.add_rollouts([make_group("right", "wrong")])
    report.close("interrupted")


def test_a_resumed_run_keeps_what_was_recorded_up_to_its_checkpoint(make_config, make_group):
    """Here the run was killed in the middle of a line."""
    config, stream = make_config(), io.StringIO()
    record_two_steps(config, make_group)
    with (config.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "st')
    (config.run_dir / "checkpoints" / "step_1").mkdir(parents=True)
    report = Report(config, stream)
    report.rewind(1)
    report.count_earlier(60.0)
    assert report.has_evaluation(0) and not report.has_evaluation(1)
    assert 60 <= report.minutes < 61
    with report.step(2):
        report.add({"nft/loss": 3.0})
    report.close("done")
    records = read_jsonl(config.run_dir / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records] == [("evaluation", 0), ("step", 1), ("step", 2)]
    assert records[1]["nft/kl"] is None and records[2]["nft/loss"] == 3.0
    assert {r["step"] for r in read_jsonl(config.run_dir / "rollouts.jsonl")} == {0, 1}
    assert "2 of 40" in stream.getvalue()


def test_a_checkpoints_copy_of_a_record_takes_the_place_of_one_that_was_never_written(make_config, make_group):
    """A run that was killed between its checkpoint and its step's end."""
    config = make_config()
    report = Report(config, io.StringIO())
    with pytest.raises(StopRequested), report.step(1):
        report.add_rollouts([make_group("right", "wrong")])
        report.add({"nft/loss": math.nan, "actor/grad_norm": 2.0})
        copy = json.loads(json.dumps(report.so_far(1)))
        assert report.so_far(2) is None
        raise StopRequested(signal.SIGTERM)
    assert report.so_far(1) is None
    report.rewind(1, copy)
    report.rewind(1, copy)
    with report.step(2):
        report.add({"nft/loss": 3.0})
    report.rewind(2, {**copy, "step": 2})
    report.close("done")
    first, second = read_jsonl(config.run_dir / "metrics.jsonl")
    assert first == copy and second["nft/loss"] == 3.0
    assert first["nft/loss"] is None and first["actor/grad_norm"] == 2.0 and first["rollout/answers"] == 2
    assert first["groups_by_correct_rate"] and first["train/updates"] == config.train.updates_per_step


def test_what_is_no_number_comes_back_when_a_run_is_resumed(make_config, make_group):
    config = make_config()
    report = Report(config, io.StringIO())
    report.add_evaluation(0, {"eval/greedy_accuracy": 0.25}, benchmarks={"sums": {"eval/greedy_accuracy": 0.25}})
    with report.step(1):
        report.add_rollouts([make_group("right", "wrong"), make_group("right", "right")])
    report.close("interrupted")
    (config.run_dir / "checkpoints" / "step_1").mkdir(parents=True)
    Report(config, io.StringIO()).rewind(1)
    first, second = read_step_reports(config.run_dir / "metrics.jsonl")
    assert first.benchmarks == {"sums": {"eval/greedy_accuracy": 0.25}} and first.groups_by_correct_rate == ()
    assert second.groups_by_correct_rate == (0, 0, 0, 0, 0, 1, 0, 0, 0, 1) and second.benchmarks == {}


def test_a_start_that_fails_keeps_all_that_was_recorded(make_config, make_group):
    config = make_config()
    record_two_steps(config, make_group)
    before = (config.run_dir / "metrics.jsonl").read_text()
    Report(config, io.StringIO()).close("failed: no engine")
    assert (config.run_dir / "metrics.jsonl").read_text() == before
    assert re.search(r'"step": ?2\b', (config.run_dir / "report.html").read_text())


def test_an_unwritable_folder_is_explained(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"can't write to the run folder .*set run.dir"):
        Report(make_config(dir=str(tmp_path / "file")), io.StringIO())


def test_a_page_that_cannot_be_written_does_not_end_the_run_and_leaves_the_last_one(opened, monkeypatch):
    report, stream, folder = opened
    report.add_evaluation(0, {"eval/greedy_accuracy": 0.25})
    before = (folder / "report.html").read_bytes()

    def full_disk(source, target):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        report.add_evaluation(1, {"eval/greedy_accuracy": 0.75})
    assert "report.html was not written: No space left on device" in stream.getvalue()
    assert (folder / "report.html").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == [
        "metrics.jsonl", "recipe.toml", "report.html", "rollouts.jsonl", "run.json",
    ]  # fmt: skip
