"""Runs that train adapters: what they leave, and that a resumed one, or one whose processes were killed, is as if it
had never stopped, with either way into the engines."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from checkpoint_tools.megatron_folder import MegatronFolder
from megatron_nft.actor.adapter_record import ADAPTER
from tests.conftest import RUN
from tests.e2e.driver import bytes_of_weights, kill, last_pid, records, same_bits, start, steps, wait_for

pytestmark = pytest.mark.e2e
LORA = [*RUN, "lora.rank=8", "optimizer.learning_rate=5e-4", "checkpoint.every=2", "algorithm.kl_weight=0.01"]
ALONE = [*LORA, "lora.sync=adapter"]


def test_a_run_with_adapters_leaves_them_and_goes_on_bit_by_bit(shared, tmp_path):
    straight, stopped = tmp_path / "a" / "quickstart", tmp_path / "b" / "quickstart"
    for folder, *more in (("a", "train.steps=4"), ("b", "train.steps=2"), ("b", "train.steps=4")):
        ended = shared.train(tmp_path / folder, *LORA, *more)
        assert ended.status == 0, ended.err
    assert "resumed from" in ended.out
    same_bits(straight / "checkpoints" / "step_4", stopped / "checkpoints" / "step_4")
    assert records(straight)[-1] == records(stopped)[-1]
    assert all(record["rollout/logprob_gap_mean"] < 1e-5 for record in steps(straight))
    kl = [record["nft/kl"] for record in steps(straight)]
    assert kl[0] < 1e-6 < kl[-1], "the reference is what adapters begin from"
    stored = MegatronFolder(straight / "checkpoints" / "step_4")
    assert stored.read_common()[ADAPTER]["rank"] == 8 and all("lora_" in key for key in stored.tensors)
    whole_is_what_peft_makes_of_the_adapter(straight)


def whole_is_what_peft_makes_of_the_adapter(run):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    about = json.loads((run / "adapter" / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(about["base_model_name_or_path"], dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(run / "hf", dtype=torch.float32)
    tokens = torch.arange(5, 60)[None]
    with torch.no_grad():
        said, expected = whole(tokens).logits, adapted(tokens).logits
        with adapted.disable_adapter():
            assert (adapted(tokens).logits - expected).abs().max() > 1e-3
    assert (said - expected).abs().max() < 1e-4
    assert bytes_of_weights(run / "adapter") < bytes_of_weights(run / "hf") / 4


@pytest.mark.night(
    "adapters alone into engines of a run's own, one of them killed, then everything; an evaluation of it"
)
def test_killed_engines_and_a_killed_run(tmp_path):
    process, _ = start(tmp_path / "a", *ALONE, "train.steps=4")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    straight, run = tmp_path / "a" / "quickstart", tmp_path / "b" / "quickstart"
    evaluates_as_it_is_told(out, tmp_path / "a")
    sizes = {record["weights/bytes"] for record in steps(straight)}
    assert len(sizes) == 1 and sizes.pop() < bytes_of_weights(straight / "hf") / 4
    process, mark = start(tmp_path / "b", *ALONE, "train.steps=4")
    wait_for(process, "step 1/")
    os.kill(last_pid(run, "engine_0"), signal.SIGKILL)
    wait_for(process, "step 3/")
    kill(process, mark)
    process, _ = start(tmp_path / "b", *ALONE, "train.steps=4")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"resumed from {run}/checkpoints/step_2" in out
    assert records(run) == records(straight)
    same_bits(straight / "checkpoints" / "step_4", run / "checkpoints" / "step_4")


def evaluates_as_it_is_told(out, folder):
    """The command that a run names at its end."""
    (command,) = re.findall(r"^ *next +megatron-nft (.*)$", out, flags=re.M)
    arguments = [*shlex.split(command), "evaluate.samples=1"]
    evaluated = subprocess.run(
        [sys.executable, "-m", "megatron_nft", *arguments], capture_output=True, text=True, timeout=600
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "as it is; the recipe's [lora] is for training" in evaluated.stdout
    results = json.loads((folder / "quickstart" / "evaluation" / "evaluation.json").read_text())
    assert list(results["benchmarks"]) == ["held_out"] and results["model"].endswith("/hf")


@pytest.mark.night("adapters alone, while answers are under way")
def test_sampling_ahead_with_adapters_alone(tmp_path):
    process, _ = start(tmp_path, *ALONE, "train.steps=4", module="megatron_nft.train_async")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    run = tmp_path / "quickstart"
    # A step whose groups had all come before has none.
    assert max(record.get("rollout/policy_version", 0) for record in steps(run)) > 0
    assert all(record["rollout/logprob_gap_mean"] < 0.05 for record in steps(run))
