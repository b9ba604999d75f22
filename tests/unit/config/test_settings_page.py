"""`python -m megatron_nft.config`: every setting with its default, what it may be and what it means."""

import subprocess
import sys

import pytest

from megatron_nft.config import Config
from megatron_nft.config.__main__ import fields_of, main


def test_every_setting_is_there_with_its_meaning(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert len(Config.model_fields) == 16
    for section in Config.model_fields:
        assert f"[{section}]  " in printed
        for key, field in fields_of(section).items():
            assert f"\n  {key} = " in printed or f"\n  {key}: " in printed, f"{section}.{key}"
            assert field.description and " ".join(field.description.split()) in words, f"{section}.{key}"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("actor.tp", "actor.tp = 1 (whole number >= 1)"),
        ("model.path", "model.path: required (text)"),
        ("weights.bucket_mib", "weights.bucket_mib: unset (whole number >= 1)"),
        ("optimizer.beta1", "optimizer.beta1 = 0.9 (number >= 0 and < 1)"),
        ("algorithm.normalize", "algorithm.normalize = 1 (0 | 1 | 2 | 3)"),
        ("run.overwrite", 'run.overwrite = false (false | true | "all")'),
        ("observe.trackers", 'observe.trackers = [] (list of "tensorboard" | "wandb")'),
        ("evaluate.samples_of", "evaluate.samples_of = {} (table of whole number >= 1)"),
    ],
)
def test_one_setting(name, line, capsys):
    assert main([name]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert " ".join(printed[0].split()) == line and printed[1].strip()


def test_one_section_as_a_user_asks_for_it():
    done = subprocess.run([sys.executable, "-m", "megatron_nft.config", "actor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[actor]  ") and "\n  tp = 1 " in done.stdout and "[run]" not in done.stdout


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("actr", "did you mean actor"),
        ("canary", "did you mean weights.canary?"),
        ("actor.tpp", "did you mean actor.tp"),
        ("xyz123", "sections: run, model, data"),
    ],
)
def test_what_is_no_setting(name, remedy, capsys):
    assert main([name]) == 2
    assert remedy in capsys.readouterr().err
