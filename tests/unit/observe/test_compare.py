"""Several runs on one page: what differs, what is shown, and folders that are no runs'."""

import io
import json
import re
import subprocess
import sys

import pytest

from megatron_nft.observe.compare import RunFolderError, differences, read_run, render_comparison
from megatron_nft.observe.report import Report


@pytest.fixture
def make_run(make_config):
    """make_run(name, **settings of [run]): the folder of a run of two steps."""

    def make(name, **run):
        config = make_config(name=name, **run)
        report = Report(config, io.StringIO())
        report.add_evaluation(0, {"eval/greedy_accuracy": 0.25})
        for step in (1, 2):
            with report.step(step):
                report.add({"nft/loss": step * 1.5})
        report.close("done")
        return config.run_dir

    return make


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_only_settings_that_differ_are_listed(make_run):
    runs = [read_run(make_run("one", seed=1)), read_run(make_run("two", seed=2))]
    assert differences(runs) == {"run.seed": [1, 2]}
    assert differences(runs[:1]) == {}


def test_the_page_has_every_run_and_every_step(make_run):
    page = render_comparison([read_run(make_run("one")), read_run(make_run("two", seed=2))])
    data = data_of(page)
    assert [run["label"] for run in data["runs"]] == ["one", "two"]
    assert data["runs"][0]["steps"]["step"] == [1, 2]
    assert data["runs"][0]["steps"]["metrics"]["nft/loss"] == [1.5, 3.0]
    assert data["runs"][0]["evaluations"]["metrics"]["eval/greedy_accuracy"] == [0.25]
    assert data["differences"] == {"run.seed": ["1", "2"]}
    assert "{{" not in page.replace(json.dumps(data), "") and "drawChart" in page


def test_runs_of_one_name_are_told_apart_and_names_are_no_markup(make_run):
    folder = make_run("same")
    (folder / "recipe.toml").write_text('[run]\nname = "</script><b>"\n')
    page = render_comparison([read_run(folder), read_run(folder)])
    assert [run["label"] for run in data_of(page)["runs"]] == ["</script><b> (1)", "</script><b> (2)"]
    assert "</script><b>" not in page


@pytest.mark.parametrize(("damage", "says"), [("gone", "no such folder"), ("empty", "has no recipe.toml")])
def test_folders_that_are_no_runs(tmp_path, damage, says):
    if damage == "empty":
        (tmp_path / "run").mkdir()
    with pytest.raises(RunFolderError, match=says):
        read_run(tmp_path / "run")


def test_the_command(make_run, tmp_path):
    command = [sys.executable, "-m", "megatron_nft.report", make_run("one"), make_run("two"), "--out"]
    done = subprocess.run([*command, tmp_path / "both.html"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"2 runs: {tmp_path}/both.html\n", done.stderr
    assert len(data_of((tmp_path / "both.html").read_text())["runs"]) == 2
    done = subprocess.run([*command[:3], tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}: no run's folder")
    done = subprocess.run([*command, "/proc/none/page.html"], capture_output=True, text=True)
    assert done.returncode == 1 and "can't write" in done.stderr


def test_answers_to_the_same_problems_stand_side_by_side(make_config, make_group):
    """The latest of each run; of problems that only one has kept, none."""
    folders = []
    for name, kind in (("one", "right"), ("two", "wrong")):
        report = Report(make_config(name=name), io.StringIO())
        for step in (0, 1):
            samples = [make_group(kind, text=f"{name} at {step}"), make_group(kind, name=f"only/{name}")]
            report.add_evaluation(step, {"eval/greedy_accuracy": 0.5}, samples)
        report.close("done")
        folders.append(make_config(name=name).run_dir)
    (problem,) = data_of(render_comparison([read_run(folder) for folder in folders]))["answers"]
    assert problem["prompt_id"] == "sums/0" and problem["ground_truth"] == "2"
    said = [(answer["answer"], answer["verdict"], answer["step"]) for answer in problem["answers"]]
    assert said == [("one at 1 #0", "right", 1), ("two at 1 #0", "wrong", 1)]
