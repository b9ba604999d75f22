"""The smoke test under torchrun: passes in a real layout, and says so when something is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parallel


def torchrun(ranks, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "-m", "megatron_nft.smoke",
         *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip


def test_smoke_passes_at_pp_2():
    done = torchrun(2, "--pp", "2")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok", "FAIL", "step", "memory", "smoke"))]
    assert lines[-1] == "smoke: 8 passed, 0 failed"
    (step,) = [line for line in lines if line.startswith("step:")]
    assert re.search(r"2755 tokens in .* s \(median of 3\): .* tokens/s, .* model TFLOP/s, \d+% of the", step)


def test_a_layout_that_does_not_fit_the_ranks_is_refused():
    done = torchrun(1, "--tp", "2")
    assert done.returncode != 0
    assert "tp 2 x pp 1 x cp 1 = 2 does not divide the 1 ranks of torchrun" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "megatron_nft.smoke", "--precision", "fp8-blockwise"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and 'choose "fp32" or "bf16"' in done.stderr
    assert "Warning" not in done.stderr, "refused before Megatron is loaded"
    done = subprocess.run([sys.executable, "-m", "megatron_nft", "smoke", "--tp=2"], capture_output=True, text=True)
    assert done.returncode == 2 and "torchrun --nproc-per-node 2 -m megatron_nft.smoke" in done.stderr


def test_another_model_on_one_rank(tmp_path):
    """A folder of our own is tested with random tokens, and without a comparison with one rank."""
    model = Path("tests/assets/quickstart/model")
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "megatron_nft.smoke", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "smoke: 5 passed, 0 failed" in done.stdout
