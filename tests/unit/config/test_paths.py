"""Paths: ~ and variables, in recipes and on command lines; what is no path is refused."""

import argparse
import json
from pathlib import Path

import pytest

from checkpoint_tools import show
from megatron_nft import report
from megatron_nft.config import load_config, path_argument
from megatron_nft.evaluation.command_line import parse_arguments
from tests.unit.config.conftest import MODEL, refusal


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOT_SET", raising=False)
    (tmp_path / "home" / "model").mkdir(parents=True)
    (tmp_path / "home" / "model" / "config.json").write_text(json.dumps(MODEL))
    return tmp_path / "home"


def test_every_path_of_a_recipe_is_expanded(recipe, home):
    config = load_config(
        recipe,
        ["run.dir=~/runs", "model.path=~/model", "model.reference=${HOME}/model", "checkpoint.resume=$SCRATCH/step_4",
         'data.train=["~/a.jsonl", "$SCRATCH/b.jsonl", "someone/math"]', 'data.held_out=["$HOME/c"]'],
    )  # fmt: skip
    scratch = str(home.parent / "scratch")
    assert config.run_dir == home / "runs" / "nft"
    assert (config.model.path, config.model.reference) == (str(home / "model"),) * 2
    assert config.checkpoint.resume == f"{scratch}/step_4"
    assert config.data.train == [f"{home}/a.jsonl", f"{scratch}/b.jsonl", "someone/math"]
    assert config.data.held_out == [f"{home}/c"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.dir=$NOT_SET/runs", "run.dir = '$NOT_SET/runs': the variable NOT_SET isn't set"),
        ("run.dir=${NOT_SET}", "the variable NOT_SET isn't set; set it, or write the path out"),
        ("run.dir=~nobody_at_all/runs", "there is no home folder of ~nobody_at_all"),
        ('run.dir=""', "run.dir = '': the path is empty"),
        ('data.train=["~/a", "$NOT_SET"]', "data.train.1 = '$NOT_SET': the variable NOT_SET"),
        ("run.name=../x", "run.name = '../x' is no name of a folder in run.dir = 'runs'"),
        ("run.name=/tmp/x", "is no name of a folder"),
        ("run.name=~", "is no name of a folder"),
        ('run.name=""', "is no name of a folder"),
        ("run.name=.", "is no name of a folder"),
        ("run.name=$NOT_SET", "is no name of a folder"),
    ],
)
def test_what_leads_nowhere_is_refused(recipe, override, words):
    assert words in refusal(recipe, override)


def test_a_name_may_have_a_folder(recipe):
    assert load_config(recipe, ["run.name=tries/one"]).run_dir == Path("runs/tries/one")


def test_command_lines_expand_them_too(home, capsys):
    assert path_argument("~/x") == home / "x"
    assert parse_arguments("", ["--out=~/x"]).out == home / "x"
    with pytest.raises(argparse.ArgumentTypeError, match="'\\$NOT_SET': the variable NOT_SET isn't set"):
        path_argument("$NOT_SET")
    with pytest.raises(SystemExit):
        report.main(["--out=$NOT_SET/x", "run"])
    assert "argument --out: '$NOT_SET/x': the variable NOT_SET isn't set" in capsys.readouterr().err
    assert show.main(["~/none"]) == 2
    assert str(home / "none") in capsys.readouterr().err
