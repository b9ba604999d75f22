"""`python -m megatron_nft.evaluate` as a user starts it: killed, cut short and started again, it ends with the same."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from megatron_nft.rollout.vllm.engine import engine_environment
from tests.e2e.test_train import assert_no_survivors

pytestmark = pytest.mark.e2e
PROMPTS, K, INTERRUPTIONS = 120, 2, 10
ARGUMENTS = [
    "launch/recipes/quickstart.toml", f"evaluate.max_prompts={PROMPTS}", f"evaluate.samples={K}",
    "rollout.max_concurrent=8", "rollout.kv_cache_gib=0.1",
]  # fmt: skip
RESULTS = ("evaluation.json", "table.txt", "report.html", "verdicts.jsonl")


def start(out):
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_nft.evaluate", *ARGUMENTS, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "MEGATRON_NFT_TEST_MARK": mark},
    )  # fmt: skip
    return process, mark


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
def job(tmp_path_factory):
    """Folder of evaluations with an engine in a plain process: "whole", the interrupted "cut", and "again"."""
    folder = tmp_path_factory.mktemp("evaluations")
    environment = os.environ | engine_environment("cpu", threads=1) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(Path(__file__).with_name("evaluate_job.py")), str(folder), str(INTERRUPTIONS)]
    finished = subprocess.run([*command, *ARGUMENTS], env=environment, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("prompts are answered already") == INTERRUPTIONS + 1
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


def test_killed_and_started_again_it_is_the_same(job, tmp_path):
    process, mark = start(tmp_path)
    deadline, samples = time.monotonic() + 120, tmp_path / "samples.jsonl"
    while not samples.exists() or samples.read_bytes().count(b"\n") < 20:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = samples.read_bytes().count(b"\n") - 1
    assert 10 <= kept < PROMPTS
    end_agents(mark)

    process, mark = start(tmp_path)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert_no_survivors(mark)
    assert f"{kept} prompts are answered already, {PROMPTS - kept} are left" in stdout and "accuracy, %" in stdout
    assert_same(tmp_path, job / "whole")


def test_a_finished_one_starts_no_engine(job):
    assert_same(job / "again", job / "whole")
    assert (job / "again" / "samples.jsonl").read_bytes() == (job / "whole" / "samples.jsonl").read_bytes()


def end_agents(mark):
    """Ends the two agents that outlive a killed driver's Ray by a minute; nothing else may be left."""
    deadline = time.monotonic() + 15
    while True:
        left = {path: (path / "cmdline").read_text() for path in processes(mark)}
        others = [
            line for line in left.values() if not line.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))
        ]
        if not others or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    assert others == []
    for path in left:
        os.kill(int(path.name), signal.SIGKILL)


def processes(mark):
    """/proc folders of the living processes that carry the mark."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes() and "State:\tZ" not in (path / "status").read_text():
                yield path
        except OSError:
            continue
