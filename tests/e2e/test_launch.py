"""launch/train.sh: a run on this machine, through a signal, to its end; and what it says to wrong arguments."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from megatron_nft.init import __main__ as init
from tests.e2e.driver import call, steps, without_clock

pytestmark = pytest.mark.e2e
RECIPE = "launch/recipes/quickstart.toml"
SMALL = ["actor.tp=1", "train.groups_per_step=4", "train.updates_per_step=1", "train.steps=1", "evaluate.samples=0",
         "evaluate.max_prompts=4", "rollout.engines=1"]  # fmt: skip


def launch(*arguments, **environment):
    return subprocess.Popen(
        ["launch/train.sh", *arguments], env={**os.environ, "PYTHON": sys.executable, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def output_of(*arguments):
    process = launch(*arguments)
    text, _ = process.communicate(timeout=60)
    return process.returncode, text


def test_help():
    status, text = output_of("--help")
    assert status == 0 and "usage: launch/train.sh" in text and "kill -USR1" in text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "usage: launch/train.sh"),
        (["--fast"], 2, "no such option: --fast; see launch/train.sh --help"),
        (["none.toml"], 2, "no recipe none.toml in "),
        ([RECIPE, "data.train=[\"none.parquet\"]"], 1, "mend what FAILs above, or give --anyway"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, status, words):
    assert (found := output_of(*arguments))[0] == status, found
    assert words in found[1] and "attempt 0" not in found[1]


def test_usr1_starts_the_run_again(tmp_path):
    settings = [*SMALL, f"run.dir={tmp_path}", "run.name=a", "run.overwrite=all"]
    process = launch(RECIPE, *settings, NFT_DRIVER="megatron_nft.train_async")
    overdue = threading.Timer(300, process.terminate)
    overdue.start()
    lines, signals = [], [signal.SIGUSR1]
    try:
        for line in process.stdout:
            lines.append(line)
            if without_clock(line).startswith("actor: ") and signals:  # starting: the launcher has forwarding to do
                process.send_signal(signals.pop())
    finally:
        overdue.cancel()
        process.terminate()
    text = "".join(lines)
    assert process.wait(timeout=20) == 0, text
    assert " 0 FAIL" in text and f"train.sh: process {process.pid}, attempt 1\n" in text
    records = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "async/staleness_mean" in record] == [1]


def test_a_recipe_that_init_has_written_trains_with_one_more_command(shared, tmp_path):
    """On this machine, as it is; two of its steps."""
    out, data = tmp_path / "mine.toml", "tests/assets/quickstart/train.parquet"
    made = call(init.main, "--model", "tests/assets/quickstart/model", "--data", data, "--gpus", 0, "--out", out)
    assert made.status == 0 and made.out.endswith(f"next: megatron-nft train {out}\n"), made.err
    ended = shared.train(tmp_path, recipe=str(out), only=["train.steps=2"])
    assert ended.status == 0, ended.err
    assert [record["step"] for record in steps(tmp_path / "mine")] == [1, 2] and (tmp_path / "mine" / "hf").is_dir()
