"""`megatron-nft init`: recipes that load, that the planner says fit, and that follow model, data and GPUs."""

import json
import re
import shutil
from pathlib import Path

import pytest

from megatron_nft.config import Config, RecipeError, load_config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.init import __main__ as command
from megatron_nft.init.choose import Given, base_settings, checked
from megatron_nft.init.prompts import Prompts
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


@pytest.mark.parametrize("gpus", [0, 8])
def test_any_number_of_rows_makes_a_recipe(gpus):
    hf = read_hf_config(MODEL)
    for count in range(1, 601):
        prompts = Prompts(count=count, longest=50, most=50, held_out=0)
        given = Given(model=MODEL, data=(DATA,), held_out=(), gpus=gpus, name="mine", prompts=prompts)
        train = Config.model_validate(base_settings(given, hf)).train
        assert train.groups_per_step <= max(count // 4, 1) and train.groups_per_step % train.updates_per_step == 0
        assert train.groups_per_step > min(count // 4, 128 if gpus else 8) - train.updates_per_step
        assert train.updates_per_step == min(4 if gpus else 2, max(count // 4, 1))


@pytest.mark.parametrize(("rows", "gpus"), [(2, 0), (20, 0), (20, 8), (500, 8)])
def test_few_rows_make_a_recipe_too(tmp_path, rows, gpus, capsys):
    lines = [json.dumps({"prompt": f"{n} + 1 = ?", "answer": str(n + 1)}) for n in range(rows)]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    arguments = ["--model", MODEL, "--data", tmp_path / "few.jsonl", "--gpus", gpus, "--hardware", "H100"]
    status, out = init(tmp_path, *arguments)
    assert status == 0, capsys.readouterr().err
    assert load_config(out).train.groups_per_step == {2: 1, 20: 4, 500: 124}[rows]


def test_settings_that_can_not_be_together_are_said_in_words():
    given = Given(model=MODEL, data=(DATA,), held_out=(), gpus=0, name="mine", prompts=None)
    settings = base_settings(given, read_hf_config(MODEL))
    settings["train"] |= {"groups_per_step": 5, "updates_per_step": 2}
    with pytest.raises(RecipeError, match=r"groups_per_step = 5 is not a multiple of train\.updates_per_step = 2"):
        checked(settings)


def test_a_gpu_that_is_nearly_full_is_said(tmp_path, seven_b, capsys):
    assert init(tmp_path, "--model", seven_b, "--gpus", 2, "--hardware", "H100")[0] == 0
    assert re.search(
        r"little room: 9\d% of the fullest GPU, and no layout of 2 leaves 15% free", capsys.readouterr().out
    )
    status, _ = init(tmp_path, "--model", seven_b, "--gpus", 8, "--hardware", "H100", "--force")
    assert status == 0 and "little room" not in capsys.readouterr().out


def test_what_comes_next_works_from_where_one_is(tmp_path, seven_b, monkeypatch, capsys):
    mine = tmp_path / "elsewhere"
    mine.mkdir()
    shutil.copy(DATA, mine / "train.parquet")
    shutil.copytree(MODEL, mine / "model")
    root = Path.cwd()
    monkeypatch.chdir(mine)

    def said(*arguments):
        assert command.main(["--model", "model", "--hardware", "H100", "--out", "my.toml", "--force", *arguments]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert said("--gpus", "0") == "next: megatron-nft train my.toml"
    assert said("--gpus", "1") == "next: megatron-nft doctor my.toml && megatron-nft train my.toml"
    line = said("--gpus", "16", "--data", "train.parquet")
    assert line == f"next: {root}/slurm/README.md, and there NFT_RECIPE={mine}/my.toml"
    monkeypatch.chdir(root)
    config = load_config(mine / "my.toml")
    assert config.model.path == f"{mine}/model" and config.data.train == [f"{mine}/train.parquet"]


@pytest.mark.parametrize(
    ("model", "why"), [("toy", "for a toy, as this is"), ("7b", "the published one, for pretrained")]
)
def test_a_rate_is_called_published_only_if_it_is(tmp_path, seven_b, model, why):
    status, out = init(tmp_path, "--model", MODEL if model == "toy" else seven_b, "--gpus", 8, "--hardware", "H100")
    assert status == 0
    line = next(line for line in out.read_text().splitlines() if line.startswith("learning_rate"))
    assert f"# {why}" in line and line.startswith(f"learning_rate = {'5e-05' if model == 'toy' else '1e-06'}")


def test_the_figures_that_launch_shows_are_the_planners(tmp_path, seven_b, capsys):
    page = Path("launch/README.md").read_text()
    assert init(tmp_path, "--model", seven_b, "--gpus", 8, "--hardware", "H100")[0] == 0
    assert re.search("^plan: .*$", capsys.readouterr().out, re.M)[0] in page
    small = tmp_path / "small"
    small.mkdir()
    (small / "config.json").write_text(json.dumps(QWEN2 | SHAPES["math_1.5b"]))
    for recipe, model in (("7b_1x8h100", seven_b.parent), ("1.5b_1x1h100", small)):
        name = f"nft_qwen2.5_math_{recipe}.toml"
        assert plan([f"launch/recipes/{name}", "--model", str(model), "--hardware", "H100", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        fullest = max(usage["bytes"] for usage in found["memory"]) / 2**30
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {found['seconds']:.0f} s" in row and f"| {fullest:.1f} of 79.1 GiB |" in row, row


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
