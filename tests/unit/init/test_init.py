"""`megatron-nft init`: recipes that load, that the planner says fit, and that follow model, data and GPUs."""

import json

import pytest

from megatron_nft.config import load_config
from megatron_nft.init import __main__ as command
from megatron_nft.plan.__main__ import main as plan
from tests.unit.plan.conftest import QWEN2, SHAPES

OTHERS = pytest.mark.night("other numbers of GPUs")
MODEL, DATA = "tests/assets/quickstart/model", "tests/assets/quickstart/train.parquet"
HELD_OUT = "tests/assets/quickstart/held_out.parquet"


@pytest.fixture
def seven_b(tmp_path):
    """The config.json of Qwen2.5-Math-7B, and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN2 | SHAPES["math_7b"]))
    return tmp_path / "config.json"


def init(tmp_path, *arguments):
    out = tmp_path / "mine.toml"
    return command.main([*map(str, arguments), "--out", str(out)]), out


def test_a_recipe_for_this_machine_follows_the_data(tmp_path, capsys):
    status, out = init(tmp_path, "--model", MODEL, "--data", DATA, "--held-out", HELD_OUT, "--gpus", "0")
    said = capsys.readouterr().out
    assert (
        status == 0 and f"next: megatron-nft train {out}" in said and "4,000 prompts, the longest of 58 tokens" in said
    )
    config = load_config(out)
    assert (config.cluster.device, config.data.max_prompt_tokens, config.run.name) == ("cpu", 64, "mine")
    assert (
        config.max_sequence_tokens <= 192
        and config.evaluate.max_prompts == 128
        and config.optimizer.learning_rate == 5e-5
    )
    assert plan([str(out)]) == 0
    text = out.read_text()
    assert text.count("  # ") > 8 and "held_out = [" in text


@pytest.mark.parametrize(
    "gpus", [1, 8, *(pytest.param(n, marks=pytest.mark.night("other numbers of GPUs")) for n in (4, 32))]
)
def test_a_7b_fits_as_many_gpus_as_it_is_for(tmp_path, seven_b, gpus, capsys):
    status, out = init(tmp_path, "--model", seven_b, "--gpus", gpus, "--hardware", "H100")
    assert status == 0, capsys.readouterr().err
    config = load_config(out, checks_weights=False)
    assert config.actor.world_size == gpus == config.rollout.engines * config.rollout.tp
    assert config.is_colocated and config.max_sequence_tokens == 4096
    assert config.optimizer.optimizer_cpu_offload == (gpus == 1), "its state is 107 GB"
    assert plan([str(out), "--hardware", "H100"]) == 0
    fullest = max(u["bytes"] / u["limit"] for u in json.loads(planned(out, capsys))["memory"])
    assert fullest < (0.95 if gpus == 1 else 0.85)


def planned(recipe, capsys):
    capsys.readouterr()
    plan([str(recipe), "--hardware", "H100", "--json"])
    return capsys.readouterr().out


def test_what_fits_nowhere_is_said_and_nothing_is_written(tmp_path, capsys):
    big = QWEN2 | SHAPES["32b"] | {"num_hidden_layers": 640}
    (tmp_path / "config.json").write_text(json.dumps(big))
    status, out = init(tmp_path, "--model", tmp_path, "--gpus", "2", "--hardware", "H100")
    assert status == 1 and not out.exists()
    assert "no layout fits:" in (said := capsys.readouterr().err) and "GiB" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/folder", "--gpus", "0"], "no/such/folder"),
        (["--model", MODEL, "--data", "no_such.jsonl", "--gpus", "0"], "no_such.jsonl"),
        (["--model", MODEL, "--gpus", "-1"], "--gpus -1"),
        (["--model", MODEL, "--gpus", "1", "--hardware", "H99"], "no hardware 'H99'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, capsys, arguments, message):
    status, out = init(tmp_path, *arguments)
    assert status == 2 and message in capsys.readouterr().err and not out.exists()


def test_a_recipe_that_is_there_stays(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("mine")
    status, out = init(tmp_path, "--model", MODEL, "--gpus", "0")
    assert status == 2 and out.read_text() == "mine" and "--force" in capsys.readouterr().err
    assert init(tmp_path, "--model", MODEL, "--gpus", "0", "--force")[0] == 0 and out.read_text() != "mine"
