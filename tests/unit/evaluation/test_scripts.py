"""launch/eval_7b.sh and eval_32b.sh: the published evaluations, as the command reads what the scripts give it."""

import itertools
import os
import subprocess

import pytest

from megatron_nft.evaluation.command_line import parse_arguments, read_settings

MODEL = "tests/assets/quickstart/model"
FILES = ("aime24", "math500", "aime25", "amc23", "olympiad", "minerva")
SHORT = ["data.max_prompt_tokens=8", "rollout.max_answer_tokens=8"]  # the model has few positions


@pytest.fixture
def given(tmp_path):
    """given("7b", NAME=value): the flags and settings that the script gives the command."""
    for name in FILES:
        (tmp_path / f"{name}.parquet").touch()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def run(size, **environment):
        given = {"MODEL": MODEL, "DATA": str(tmp_path), "PYTHON": str(python)} | environment
        done = subprocess.run(
            [f"launch/eval_{size}.sh", "run.seed=7"], env=os.environ | given, capture_output=True, text=True, timeout=30
        )
        return done.returncode, done.stdout.splitlines() or done.stderr

    return run


def resolved(status, arguments):
    assert status == 0 and arguments[:2] == ["-m", "megatron_nft.evaluate"], arguments
    config, _ = read_settings(parse_arguments(None, [*arguments[2:], *SHORT]))
    return config


@pytest.mark.parametrize(
    ("size", "environment", "temperature", "tokens", "engines"),
    [
        ("7b", {"TEMPERATURE": "1.0"}, 0.6, (512, 3584), (8, 1)),  # a shell's own is another's
        ("32b", {}, 0.6, (2048, 14336), (2, 4)),
        ("32b", {"PUBLISHED": "training"}, 0.6, (2048, 14336), (2, 4)),
        ("32b", {"PUBLISHED": "script"}, 1.0, (1024, 7168), (2, 4)),
    ],
)
def test_the_published_settings(given, size, environment, temperature, tokens, engines):
    # No test model has heads for tp 4.
    status, arguments = given(size, **environment)
    flags = {flag: value for flag, value in itertools.pairwise(arguments) if flag.startswith("--")}
    assert (int(flags["--max-prompt-tokens"]), int(flags["--max-answer-tokens"])) == tokens
    assert (int(flags["--engines"]), int(flags["--tp"])) == engines
    config = resolved(status, [*arguments, "rollout.tp=1"])
    assert (config.evaluate.temperature, config.evaluate.top_p, config.evaluate.samples) == (temperature, 0.7, 32)
    assert config.evaluate.samples_of == {"math500": 1, "olympiad": 1, "minerva": 1}
    assert [file.rpartition("/")[2] for file in config.data.held_out] == [f"{name}.parquet" for name in FILES]
    assert config.run.seed == 7 and ("\\boxed{}" in config.data.system_prompt) == (size == "32b")
    assert set(config.verdict.modes.values()) == {"whole_text"} and "olympiadbench" in config.verdict.modes


def test_what_may_be_other(given):
    assert set(resolved(*given("7b", GRADING="boxed")).verdict.modes.values()) == {"boxed"}
    assert resolved(*given("32b", SYSTEM_PROMPT="", TP="1")).data.system_prompt == ""
    assert given("7b", GRADING="box") == (
        2, "error: GRADING=box: choose whole_text (as the authors grade) or boxed (the last box)\n"
    )  # fmt: skip
    status, error = given("32b", PUBLISHED="paper")
    assert status == 2 and "choose training (T 0.6, 2048 + 14336) or script (T 1.0, 1024 + 7168)" in error
