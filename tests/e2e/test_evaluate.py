"""`python -m megatron_nft.evaluate` as a user starts it: killed, cut short and started again, it ends with the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from unittest import mock

import pytest

from megatron_nft import evaluate
from megatron_nft.cluster.stream import stream_answers
from megatron_nft.weights.sync import sync_weights
from tests.conftest import TAKES_MINUTES
from tests.e2e.driver import RECIPE, assert_no_survivors, call, living

pytestmark = pytest.mark.e2e
PROMPTS, K, INTERRUPTIONS = 120, 2, 10
ARGUMENTS = [
    RECIPE, f"evaluate.max_prompts={PROMPTS}", f"evaluate.samples={K}", "rollout.max_concurrent=8",
    "rollout.kv_cache_gib=0.1", "rollout.engines=1",
]  # fmt: skip
RESULTS = ("evaluation.json", "table.txt", "report.html", "verdicts.jsonl")


class Interrupted(Exception):
    """In place of a signal."""


def start(out):
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_nft.evaluate", *ARGUMENTS, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "MEGATRON_NFT_TEST_MARK": mark},
    )  # fmt: skip
    return process, mark


@contextmanager
def engines_up(shared):
    """Evaluations in this process have engines with the quickstart's weights, in the place of their own."""
    from tests.e2e.shared import base

    actors, engines = shared.serve(base())
    sync_weights(actors, engines, 0)

    def sample(config, missing, samples):
        evaluate.sample(engines, config, missing, samples)

    with mock.patch.object(evaluate, "sample_with_engines", sample):
        yield engines


def stream_until(limit):
    """`stream_answers`, interrupted after so many prompts."""

    def stream(engines, *arguments):
        for count, group in enumerate(stream_answers(engines, *arguments)):
            if count == limit:
                engines.call("forget")
                raise Interrupted
            yield group

    return mock.patch.object(evaluate, "stream_answers", stream)


def evaluate_here(out):
    ended = call(evaluate.main, *ARGUMENTS, "--out", out)
    assert ended.status == 0, ended.err
    return ended.out


def answers(out):
    """prompt_id -> its answers' texts; a prompt is there once."""
    records = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()[1:]]
    found = {record["prompt_id"]: [a["text"] for a in record["answers"]] for record in records}
    assert len(found) == len(records)
    return found


def assert_same(out, whole):
    assert answers(out) == answers(whole)
    for name in RESULTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.fixture(scope="module")
def job(shared, tmp_path_factory):
    """Folder of evaluations: "whole"; "cut", interrupted INTERRUPTIONS times, its file then cut at a random byte each
    time; "early", a copy of that half way; "again", the first one once more, without an engine that answers."""
    folder = tmp_path_factory.mktemp("evaluations")
    cut, rng = folder / "cut", random.Random(1)
    with engines_up(shared):
        evaluate_here(folder / "whole")
        for number in range(INTERRUPTIONS):
            with stream_until(rng.randrange(1, 12)), pytest.raises(Interrupted):
                evaluate_here(cut)
            file = cut / evaluate.SAMPLES
            file.write_bytes(file.read_bytes()[: -rng.randrange(0, 900)])
            if number == INTERRUPTIONS // 2:
                shutil.copytree(cut, folder / "early")
        assert "prompts are answered already" in evaluate_here(cut)
    shutil.copytree(folder / "whole", folder / "again")
    with mock.patch.object(evaluate, "sample_with_engines", side_effect=AssertionError("engines were started")):
        assert f"{PROMPTS} prompts are answered already, 0 are left" in evaluate_here(folder / "again")
    return folder


def test_all_is_written(job):
    benchmark = json.loads((job / "whole" / "evaluation.json").read_text())["benchmarks"]["held_out"]
    assert (benchmark["eval/prompts"], benchmark["eval/k"]) == (PROMPTS, K)
    assert 0.2 < benchmark["eval/avg_at_k"] < 0.6  # README: avg@4 is 0.369 before training
    assert benchmark["eval/avg_at_k"] < benchmark["eval/pass_at_k"]
    assert len(answers(job / "whole")) == PROMPTS
    rights = [json.loads(line)["rights"] for line in (job / "whole" / "verdicts.jsonl").read_text().splitlines()]
    assert sum(map(sum, rights)) == benchmark["verdict/right"] == round(benchmark["eval/avg_at_k"] * PROMPTS * K)


def test_interrupted_ten_times_it_is_the_same(job):
    assert_same(job / "cut", job / "whole")


def assert_goes_on(out, kept, whole):
    """As a user starts it, from so many prompts to the end."""
    process, mark = start(out)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert_no_survivors(mark)
    assert (
        f"{kept} prompts are answered already, {PROMPTS - kept} are left" in stdout
        and "no verdict: answers without" in stdout
    )
    assert_same(out, whole)


def num_kept(out):
    """Prompts with whole lines."""
    return (out / evaluate.SAMPLES).read_bytes().count(b"\n") - 1


def test_engines_of_its_own_go_on_with_it(job, tmp_path):
    shutil.copytree(job / "early", tmp_path, dirs_exist_ok=True)
    kept = num_kept(tmp_path)
    assert 0 < kept < PROMPTS
    assert_goes_on(tmp_path, kept, job / "whole")


@TAKES_MINUTES
def test_killed_and_started_again_it_is_the_same(job, tmp_path):
    process, mark = start(tmp_path)
    deadline, samples = time.monotonic() + 120, tmp_path / evaluate.SAMPLES
    while not samples.exists() or samples.read_bytes().count(b"\n") < 20:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = num_kept(tmp_path)
    assert 10 <= kept < PROMPTS
    end_agents(mark)
    assert_goes_on(tmp_path, kept, job / "whole")


def test_a_finished_one_starts_no_engine(job):
    assert_same(job / "again", job / "whole")
    assert (job / "again" / "samples.jsonl").read_bytes() == (job / "whole" / "samples.jsonl").read_bytes()


def end_agents(mark):
    """Ends the two agents that outlive a killed driver's Ray by a minute; nothing else may be left."""
    deadline = time.monotonic() + 15
    agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    while True:
        left = living(mark)
        others = [line for line in left.values() if not line.startswith(agents)]
        if not others or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    assert others == []
    for pid in left:
        os.kill(pid, signal.SIGKILL)
