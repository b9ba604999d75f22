"""`megatron-nft`: a table of commands, of which only the one that is asked for is loaded."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from megatron_nft.__main__ import COMMANDS, main

by_name = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


def test_the_table_says_what_there_is(capsys):
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert all(f"  {command.name} " in printed and command.summary in printed for command in COMMANDS)
        assert "megatron-nft train launch/recipes/quickstart.toml" in printed


@by_name
def test_every_module_has_a_main(command):
    tree = ast.parse(Path(importlib.util.find_spec(command.module).origin).read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert len(function.args.defaults) == len(function.args.args) == 1, "as a console script calls it"


@by_name
def test_help_says_how_it_is_called_and_how_it_ends(command, capsys):
    """Each --help shows the command in an example, and its exit statuses."""
    with pytest.raises(SystemExit) as ended:
        main([*command.name.split(), "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert printed.startswith(f"usage: megatron-nft {command.name} ")
    assert f"megatron-nft {command.name}" in printed.partition("\n\n")[2] and "Exit status: 0" in printed


@by_name
def test_arguments_that_no_command_has(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.name.split(), "--no-such-option"])
    assert ended.value.code == 2
    assert f"megatron-nft {command.name}: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["evalute"], "no command 'evalute'; did you mean evaluate?"),
        (["trian"], "did you mean train"),
        (["hf-to-megatron"], "did you mean convert hf-to-megatron"),
        (["convert", "hf-to-megatrn"], "did you mean convert hf-to-megatron"),
        (["convert", "--hf", "x"], "did you mean convert megatron-to-hf or convert hf-to-megatron?"),
        (["xyzzy"], "there are: doctor, plan"),
    ],
)
def test_what_is_no_command(words, remedy, capsys):
    assert main(words) == 2
    assert remedy in capsys.readouterr().err


def test_names_of_modules_do_as_well(capsys):
    with pytest.raises(SystemExit):
        main(["train_async", "--help"])
    assert capsys.readouterr().out.startswith("usage: megatron-nft train-async ")


def test_convert_has_two_directions(capsys):
    for words in (["convert"], ["convert", "--help"]):
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert "convert hf-to-megatron  " in printed and "convert megatron-to-hf  " in printed


def missing(monkeypatch, module):
    """Importing a command ends in this module's not being there."""

    def import_module(name):
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr("importlib.import_module", import_module)


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    missing(monkeypatch, "ray.util")
    assert main(["train", "recipe.toml"]) == 1
    assert "needs the package 'ray', which is not installed here: ./launch/install.sh" in capsys.readouterr().err


def bare(*words):
    """By a Python without any package; (exit status, lines)."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    call = [sys.executable, "-S", "-m", *words]
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("module", ["train", "evaluate", "plan", "smoke", "sft", "verdict.check"])
def test_a_python_without_packages_says_so_in_a_line_however_it_is_called(module):
    says_what_it_lacks(f"megatron_nft.{module}")


@pytest.mark.parametrize("module", ["hf_to_megatron", "megatron_to_hf", "adapter_to_hf", "show", "inspect", "verify"])
def test_so_does_a_tool_for_checkpoints(module):
    says_what_it_lacks(f"checkpoint_tools.{module}")


def says_what_it_lacks(module):
    status, (line,) = bare(module, "x.toml")
    assert status == 1 and re.match(
        rf"error: python -m {re.escape(module)} needs the package '\w+', which is not", line
    )
    assert line.endswith("source .venv/bin/activate")


def test_what_a_running_command_lacks_keeps_its_traceback():
    """A mistake of our own, too."""
    code = """if True:
        import sys
        sys.argv = ["-m"]
        import megatron_nft
        def {}():
            import {}
        {}()
    """
    for function, module, lines in (
        ("main", "no_such", 1),
        ("load", "megatron_nft.no_such", 1),
        ("load", "no_such", 0),
    ):
        source = code.format(function, module, function)
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("Traceback") == lines, done.stderr


def test_a_setting_more_is_never_asked_for(capsys):
    for words in (["plan"], ["train"], ["sft"], ["preflight"], ["replay"]):
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr().err
        assert "the following arguments are required: recipe" in said and "section.key" not in said.split("required")[1]


def test_a_mistake_of_our_own_keeps_its_traceback(monkeypatch):
    missing(monkeypatch, "megatron_nft.no_such")
    with pytest.raises(ModuleNotFoundError):
        main(["train", "recipe.toml"])


def test_only_the_command_that_is_asked_for_is_loaded():
    code = """if True:
        import sys, megatron_nft.__main__ as command
        status = command.main(["{}"])
        loaded = {{name.split(".")[1] for name in sys.modules if name.startswith("megatron_nft.")}}
        heavy = {{"torch", "ray", "vllm", "megatron", "transformers", "numpy", "pydantic"}} & set(sys.modules)
        print(status, sorted(loaded), sorted(heavy), file=sys.stderr)
    """
    for word, expected in (
        ("--help", "0 ['__main__'] []"),
        ("config", "0 ['__main__', 'config', 'families'] ['pydantic']"),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(word)], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == expected


def test_the_script_is_installed_and_is_python_m(tmp_path):
    """launch/install.sh, or `pip install -e .`, puts it beside python."""
    assert tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"] == {
        "megatron-nft": "megatron_nft.__main__:main"
    }
    script = Path(sys.executable).with_name("megatron-nft")
    assert script.exists(), "./launch/install.sh"
    environment = {**os.environ, "COLUMNS": "100"}
    outputs = [
        subprocess.run([*call, *words], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        for call in ([script], [sys.executable, "-m", "megatron_nft"])
        for words in (["--help"], ["plan", "--help"])
    ]
    assert [o.stdout for o in outputs[:2]] == [o.stdout for o in outputs[2:]]
    alone = subprocess.run(
        [sys.executable, "-m", "megatron_nft.plan", "--help"], capture_output=True, text=True, env=environment
    )
    assert alone.stdout == outputs[1].stdout


def test_the_exit_status_is_the_commands():
    for words, status in ((["plan", "/nowhere.toml"], 2), (["report", "/nowhere"], 2), (["config", "actor.tp"], 0)):
        done = subprocess.run([sys.executable, "-m", "megatron_nft", *words], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
