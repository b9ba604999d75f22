"""Graders of one's own are tried before a run: scores that the recipe's method takes none of are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_nft.config import RecipeError, load_config, to_toml
from megatron_nft.verdict.check import own_graders
from megatron_nft.verdict.tries import try_graders

MODULE = """
import os

def same(answer, ground_truth, **others):
    return answer == ground_truth

def share(answer, ground_truth, **others):
    return sum(a == b for a, b in zip(answer, ground_truth)) / len(ground_truth)

def fail(**others):
    raise ValueError("no verdict")

def crash(**others):
    os._exit(3)

def shares(answer, ground_truth, **others):
    return [share(a, g) for a, g in zip(answer, ground_truth)]

def whole(answer, ground_truth, **others):
    return float(answer == ground_truth)
"""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """A folder with the package "tried", importable."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "tried").mkdir()
    (folder / "tried/grading.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def tried(config):
    try_graders(config, own_graders(config.verdict))


@pytest.fixture
def recipe_of(tmp_path):
    """recipe_of("tried.grading:share", ...): a recipe whose training data that grader grades."""
    (tmp_path / "mine.jsonl").write_text('{"prompt": "2 + 40 = ?", "answer": "42"}\n')

    def recipe(grader, *settings):
        modes = f'verdict.modes={{mine = "{grader}", held = "tried.grading:same"}}'
        return load_config(
            "launch/recipes/quickstart.toml", [f'data.train=["{tmp_path}/mine.jsonl"]', modes, *settings]
        )

    return recipe


@pytest.mark.parametrize("settings", [(), ('verdict.batches={"tried.grading:shares" = 4}',)])
def test_scores_that_the_method_takes_none_of_are_refused_before_a_run(recipe_of, settings):
    grader = "tried.grading:shares" if settings else "tried.grading:share"
    with pytest.raises(RecipeError) as refused:
        tried(recipe_of(grader, *settings))
    first, line = str(refused.value).splitlines()
    assert first == "graders that give scores:"
    assert line.startswith(
        f"  verdict.modes: 'mine' = '{grader}' scores the made answer '4' with 0.5, and algorithm.name = "
    )
    assert (
        '"nft" takes right or wrong only; let the grader say True or False, or choose one of ' in line
        and "grpo" in line
    )
    tried(recipe_of(grader, "algorithm.name=grpo", *settings))


@pytest.mark.parametrize("grader", ["same", "whole", "fail", "crash"])
def test_graders_of_right_and_wrong_and_those_that_fail_say_nothing_of_scores(recipe_of, grader):
    tried(recipe_of(f"tried.grading:{grader}"))


def test_the_command_tries_graders(recipe_of, modules, tmp_path):
    path = {"PYTHONPATH": f"{modules}:{Path.cwd()}"}
    config = recipe_of("tried.grading:share")
    (tmp_path / "mine.toml").write_text(to_toml(config))
    command = [sys.executable, "-m", "megatron_nft.verdict.check", str(tmp_path / "mine.toml")]
    refused = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
    assert refused.returncode == 2 and "scores the made answer '4' with 0.5" in refused.stderr, refused.stderr
