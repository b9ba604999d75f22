"""Flags, recipes and their mixture; bad input is refused with a remedy, before an engine starts."""

import json
import shutil
import sys

import pytest

from megatron_nft import evaluate as command
from megatron_nft.config import RecipeError, load_config, to_toml
from tests.parallel.mixtures import make_mixture

MODEL = "tests/assets/quickstart/model"
DATA = "tests/assets/quickstart/held_out.parquet"
SHORT = ["--max-prompt-tokens", "128", "--max-answer-tokens", "64"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command up to where engines would start; (exit status, what it says on stderr)."""

    def started(*arguments, **keywords):
        raise RuntimeError("an engine would start")

    monkeypatch.setattr(command, "ray_cluster", started)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "--out", str(tmp_path / "out")])
        status = command.main()
        return status, capsys.readouterr().err

    return run


def settings(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    return command.read_settings(command.parse_arguments())


def test_flags_are_settings(monkeypatch):
    config, out = settings(
        monkeypatch, "--model", MODEL, "--data", "a b.parquet", "c.jsonl", "--n", "32", "--n-of", "c=1", "d-e=2",
        "rollout.dtype=float32", *SHORT, "--top-p", "1",
        "--engines", "8", "--seed", "3", "evaluate.temperature=0.9", "--device", "cuda",
    )  # fmt: skip
    assert config.data.held_out == ["a b.parquet", "c.jsonl"]
    assert (config.evaluate.samples, config.evaluate.samples_of) == (32, {"c": 1, "d-e": 2})
    assert (config.evaluate.temperature, config.evaluate.top_p, config.rollout.engines) == (0.9, 1.0, 8)
    assert (config.run.seed, config.cluster.device, config.data.train) == (3, "cuda", [])
    assert config.rollout.dtype == "float32"
    assert str(out) == "runs/evaluation/model"


def test_published_sampling_is_the_default(monkeypatch):
    config, _ = settings(monkeypatch, "--model", MODEL, "--data", DATA, "--n", "1", *SHORT)
    assert (config.evaluate.temperature, config.evaluate.top_p) == (0.6, 0.7)


def test_a_recipe_with_overrides_after_the_files(monkeypatch, tmp_path):
    recipe = "launch/recipes/quickstart.toml"
    config, out = settings(
        monkeypatch, recipe, "--data", "a.parquet", "evaluate.samples=2", "cluster.placement=colocated"
    )
    assert (config.data.held_out, config.evaluate.samples) == (["a.parquet"], 2)
    assert config.cluster.placement == "split", "engines alone have places of their own"
    assert str(out) == "runs/quickstart/evaluation"
    config, out = settings(monkeypatch, recipe, "run.seed=5", "--out", str(tmp_path))
    assert config.data.held_out == load_config(recipe).data.held_out
    assert (config.run.seed, out) == (5, tmp_path)


def test_engines_get_no_adapter_and_replay_nothing(monkeypatch, capsys, tmp_path):
    """A run's `hf` has its adapters in it, and nobody is there to send them; nor does anybody ask for experts."""
    recipe = tmp_path / "recipe.toml"
    trained = ["lora.rank=8", "lora.sync=adapter", "lora.adapter=gone"]
    recipe.write_text(to_toml(load_config("launch/recipes/quickstart.toml", trained, trains=False)))
    config, _ = settings(monkeypatch, str(recipe), "--model", MODEL)
    assert not config.syncs_adapter and config.lora.adapters is None
    assert "as it is; the recipe's [lora] is for training" in capsys.readouterr().out
    with pytest.raises(RecipeError, match=r"lora.adapter=mine: the whole model in model.path answers"):
        settings(monkeypatch, str(recipe), "--model", MODEL, "lora.adapter=mine")
    mixture = make_mixture("qwen3_moe", tmp_path / "mixture", max_position_embeddings=4096)
    config, _ = settings(monkeypatch, "launch/recipes/quickstart_moe.toml", "--model", str(mixture))
    assert not config.replays_engine


def test_good_input_gets_as_far_as_the_engines(run):
    with pytest.raises(RuntimeError, match="an engine would start"):
        run("--model", MODEL, "--data", DATA, "--n", "1", *SHORT)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--n", "0", "--data", DATA], ["evaluate.samples (--n) = 0", "set it to 1 or more"]),
        (["--n", "-1", "--data", DATA], ["evaluate.samples = -1"]),
        (["--data", DATA], ["evaluate.samples (--n) = 0"]),
        (["--n", "1", "--n-of", "aime24=2", "--data", DATA], ["'aime24', which is no benchmark here: held_out"]),
        (["--n", "1", "--n-of", "held_out", "--data", DATA], ["--n-of held_out: not of the form NAME=N"]),
        (["--n", "1", "--n-of", "held_out=0", "--data", DATA], ["evaluate.samples_of", "greater than or equal to 1"]),
        (["--n", "1"], ["no data to evaluate on: give --data FILE"]),
        (["--n", "1", "--data", "/nowhere.parquet"], ["no data file /nowhere.parquet"]),
        (["--n", "1", "--data", "README.md"], ["README.md: unknown kind of file"]),
        (["--n", "2", "--temperature", "0", "--data", DATA], ["evaluate.temperature = 0 gives 2 equal answers"]),
        (["--n", "1", "--data", DATA, "--tp", "3"], ["rollout.tp = 3 does not divide"]),
        (["--n", "1", "--data", DATA, "--max-answer-tokens", "4096"], ["max_position_embeddings 512; shorten one"]),
        (["--n", "1", "--data", DATA, "evaluate.sample=1"], ["evaluate.sample: unknown key"]),
        (["--n", "1", "--data", DATA, DATA], ["2 data files are called held_out"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_settings(run, arguments, messages):
    status, error = run("--model", MODEL, *SHORT, *arguments)
    assert status == 2 and error.startswith("error: ") and "Traceback" not in error
    assert all(message in error for message in messages), error


def test_wrong_model_folders(run, tmp_path):
    data = ["--data", DATA, "--n", "1", *SHORT]
    assert run("--model", "/nowhere", *data) == (
        2,
        "error: model.path = '/nowhere': no such folder; give a local HF model folder\n",
    )

    bare = tmp_path / "bare"
    shutil.copytree(MODEL, bare)
    for path in bare.glob("token*"):
        path.unlink()
    status, error = run("--model", str(bare), *data)
    assert status == 2 and "no tokenizer in" in error and "copy the model's tokenizer files there" in error

    megatron = tmp_path / "checkpoint"
    megatron.mkdir()
    (megatron / "metadata.json").write_text("{}")
    shutil.copytree(MODEL, megatron / "hf")
    status, error = run("--model", str(megatron), *data)
    assert status == 2 and "is a Megatron checkpoint; make an HF folder of it first" in error
    assert f"python -m checkpoint_tools.megatron_to_hf --megatron {megatron} --out {megatron}_hf" in error


def test_wrong_data_files(run, tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "1+1="}], "reward_model": {"ground_truth": "2"}, "data_source": "sums",
        "extra_info": {"index": 0},
    }  # fmt: skip
    other = row | {"prompt": [{"role": "user", "content": "1+2="}], "reward_model": {"ground_truth": "3"}}
    files = {
        "column": ([{k: v for k, v in row.items() if k != "prompt"}], "row 0: no column prompt, question, problem"),
        "gold": ([row | {"reward_model": {"style": "rule"}}], "row 0 (counted from 0): no ground truth"),
        "duplicate": ([row, other], "rows 0 and 1 (counted from 0) have one id, extra_info.index = 0"),
        "text": ([row | {"prompt": " "}], "row 0: prompt is empty"),
    }
    for name, (rows, message) in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        status, error = run("--model", MODEL, "--n", "1", *SHORT, "--data", str(path))
        assert status == 2 and message in error, error
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    status, error = run("--model", MODEL, "--n", "1", *SHORT, "--data", str(broken))
    assert status == 2 and "broken.parquet cannot be read" in error


def test_kept_samples_of_other_settings(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "samples.jsonl").write_text('{"evaluation": {"temperature": 1.0}}\n')
    status, error = run("--model", MODEL, "--n", "1", *SHORT, "--data", DATA)
    assert status == 2 and "holds samples of another evaluation" in error and "choose another --out" in error
