"""Benchmarks are called one way, and their pages say what a figure needs: machine, versions, command, date. What can't
be run is refused at once, with a line."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from benchmarks.scale import run as scale
from benchmarks.scale import sampling

FOLDERS = sorted(path for path in Path("benchmarks").iterdir() if (path / "README.md").is_file())
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("results_*.md"))
TABLE = Path("benchmarks/README.md").read_text()


def test_each_has_its_script_and_says_how_it_is_called():
    assert len(FOLDERS) >= 14
    without = [f.name for f in FOLDERS if not (f / "run.py").is_file()]
    silent = [f.name for f in FOLDERS if f"python -m benchmarks.{f.name}.run" not in (f / "README.md").read_text()]
    assert without == [] and silent == []


def test_no_script_is_called_by_its_path():
    texts = {str(p): p.read_text() for p in Path("benchmarks").rglob("*") if p.suffix in (".md", ".py")}
    assert [name for name, text in texts.items() if re.search(r"python benchmarks/", text)] == []


def test_every_page_has_machine_versions_and_command():
    wanted = {
        "a machine": r"\b(?:2|two) (?:shared |virtual )?cores|\bH100|Linux-\d",
        "versions": r"Python 3\.\d",
        "a command": r"python -m |\./launch/",
    }
    missing = [(str(p), what) for p in PAGES for what, how in wanted.items() if not re.search(how, p.read_text())]
    assert len(PAGES) >= 14 and missing == []


def test_the_table_has_a_row_of_each_with_its_newest_page():
    rows = [line for line in TABLE.splitlines() if line.startswith("| [")]
    for folder in FOLDERS:
        mine = [row for row in rows if row.startswith(f"| [{folder.name}]({folder.name}/)")]
        if not (pages := sorted(folder.glob("results_*.md"))):
            continue  # nothing measured yet
        assert mine and all(row.count(" | ") == 3 for row in mine), f"{folder.name}: subject, figure, anchor, page"
        assert any(f"{folder.name}/{pages[-1].name}" in row for row in mine), pages[-1]


@pytest.fixture
def scale_alone(monkeypatch):
    """The simulated cluster's command line, which is to start nothing; with a grpc, which may not be installed."""

    def started(*_, **__):
        raise AssertionError("it has started a process")

    monkeypatch.setattr(scale.subprocess, "run", started)
    monkeypatch.setitem(sys.modules, "grpc", ModuleType("grpc"))


def refusal(capsys, call, line):
    """What argparse says at the end."""
    with pytest.raises(SystemExit) as ended:
        call(line.split())
    assert ended.value.code == 2
    return capsys.readouterr().err.partition("error: ")[2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--gpus abc", "'abc'; give numbers of GPUs with commas between them: 16,128"),
        ("--gpus 16,", "'16,'; give numbers of GPUs"),
        ("--gpus 16,24", "24: a replica of the recipe has 16 ranks; give multiples of 16"),
        ("--gpus 0", "0: a replica of the recipe has 16 ranks"),
        ("--steps 0", "--steps 0; give at least 1"),
        ("--prompts 0", "--prompts 0; give at least 1"),
        ("--gpus 16 train.stepz=1", "train.stepz: unknown key"),
        ("--gpus 16,128 rollout.engines=4 rollout.tp=3", "rollout.tp"),
        ("--gpus 16 model.path=/nope", "/nope"),
        ("--json no/such/folder/x.json", "there is no folder no/such/folder"),
        ("--gpus 128,16 --weak --steps 1", "--weak on 16 GPUs: answers of up to 114,688 tokens"),
    ],
)
def test_the_simulated_cluster_refuses_before_it_starts(line, said, scale_alone, capsys):
    assert said in refusal(capsys, scale.main, line)


def test_the_simulated_cluster_says_how_the_missing_grpc_is_installed(scale_alone, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "grpc", None)  # as if it were not there
    needed = refusal(capsys, scale.main, "--gpus 16")
    assert "grpc, which is not installed; " in needed and needed.rstrip().endswith("-r requirements-trackers.txt")
    assert "grpcio==" in Path("requirements-trackers.txt").read_text()
    assert "pip install -r requirements-trackers.txt" in Path("benchmarks/scale/README.md").read_text()


@pytest.mark.parametrize(("gpus", "begun"), [([], 128), (["--gpus", "512"], 512)])
def test_a_size_that_fails_ends_the_simulated_cluster_with_a_line(gpus, begun, scale_alone, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        scale.subprocess, "run", lambda command, **_: calls.append(command) or SimpleNamespace(returncode=3)
    )
    assert scale.main(["--weak", *gpus]) == 1
    assert f"the run on {begun} GPUs ended with exit status 3" in capsys.readouterr().err and len(calls) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [("rounds --steps -1", "--steps -1; give at least 1"), ("rounds --steps 0", "--steps 0; give at least 1"),
     ("rounds --groups 0", "--groups 0; give at least 1"),
     ("steps --steps 0", "--steps 0: the first four"), ("steps --steps 4", "--steps 4: the first four")],
)  # fmt: skip
def test_simulated_sampling_refuses_too_few_steps(line, said, capsys):
    assert said in refusal(capsys, sampling.main, line)
