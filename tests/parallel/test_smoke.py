"""The smoke test under torchrun: passes in a real layout, and says so when something is wrong.

torchrun starts it once; what one rank of it says is asked of forked ones, which have Megatron imported already.
"""

import io
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel


def torchrun(ranks, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "-m", "megatron_nft.smoke",
         *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip


def smoke(*arguments, **environment):
    """Exit status, standard output and error of `python -m megatron_nft.smoke` on one rank."""
    return run_ranks(1, smoke_on_rank, arguments, environment)[0]


def smoke_on_rank(rank, master, arguments, environment):
    sys.argv[1:], out, err = arguments, io.StringIO(), io.StringIO()
    os.environ.pop("RANK", None)
    os.environ.update(environment)
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        runpy.run_module("megatron_nft.smoke", run_name="__main__")
    return ended.value.code, out.getvalue(), err.getvalue()


def test_smoke_passes_at_pp_2_and_prints_its_checks_only():
    done = torchrun(2, "--pp", "2")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok ", "step: ", "memory: ", "smoke: ")) for line in lines), lines
    assert lines[0].startswith(
        "smoke: 2 ranks (tp 1 x pp 2 x dp 1), fp32, cpu | model tests/assets/quickstart/model | 32"
    )
    assert lines[-1] == "smoke: 8 passed, 0 failed" and len(lines) == 12
    assert "Warning" not in done.stderr, "only torchrun's own lines"
    (step,) = [line for line in lines if line.startswith("step:")]
    assert re.search(r"2755 tokens in .* s \(median of 3\): .* tokens/s, .* model TFLOP/s, \d+% of the", step)


def test_smoke_passes_with_a_mixture_of_its_own_at_ep_2():
    done = torchrun(2, "--ep", "2")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "smoke: 8 passed, 0 failed"


def test_what_does_not_fit_is_refused():
    status, _, error = smoke("--tp", "2", RANK="0", WORLD_SIZE="1")
    assert status == 2
    assert "tp 2 x pp 1 x cp 1 = 2 does not divide the 1 ranks of torchrun" in error
    status, _, error = smoke("--ep", "3", RANK="0", WORLD_SIZE="3")
    assert status == 2 and "actor.ep = 3 does not divide the model's 16 experts; choose one of [1, 2, 4" in error
    status, _, error = smoke("--precision", "fp8-blockwise")
    assert status == 2 and 'choose "fp32" or "bf16"' in error
    for more, remedy in ([], "give --ranks 2"), (["--ranks=3"], "does not divide --ranks 3"):
        command = [sys.executable, "-m", "megatron_nft", "smoke", "--tp=2", *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and remedy in done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == "", "refused before Megatron is loaded"


def test_its_own_ranks_with_a_model_made_for_them():
    """Three: no model of the project has so many heads."""
    done = subprocess.run(
        [sys.executable, "-m", "megatron_nft.smoke", "--ranks=3", "--tp=3"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("smoke: 3 ranks (tp 3 x pp 1 x dp 1), fp32, cpu | model ") and "_tp3_" in lines[0]
    assert lines[-1] == "smoke: 8 passed, 0 failed"


def test_a_rank_that_refuses_says_so_once_as_the_last_line(tmp_path):
    """Found on the ranks, not before: the weights are of another shape than config.json says."""
    for file in Path("tests/assets/quickstart/model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 640}))
    done = subprocess.run(
        [sys.executable, "-m", "megatron_nft.smoke", "--ranks=2", "--tp=2", "--model", str(tmp_path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: rank ") and "(logs: " in line and "Traceback" not in done.stdout


def test_another_model_on_one_rank(tmp_path):
    """A folder of our own is tested with random tokens, and without a comparison with one rank."""
    model = Path("tests/assets/quickstart/model")
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    status, output, error = smoke("--model", str(tmp_path))
    assert status == 0, output + error[-3000:]
    assert "smoke: 5 passed, 0 failed" in output
