"""The one command: `megatron-nft COMMAND ...`, the same as `python -m megatron_nft COMMAND ...`.

COMMANDS names the module of each command; the one that is asked for is imported, and its `main` gets the rest of the
line. So nothing here needs more than the standard library, and every command is also a `python -m MODULE` of its own.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_nft import what_is_missing


@dataclass(frozen=True)
class Command:
    """What is typed, one or two words; the module that does it; what it does."""

    name: str
    module: str
    summary: str


COMMANDS = (
    Command("doctor", "megatron_nft.doctor.__main__", "is this machine fit to run, and for this recipe?"),
    Command("plan", "megatron_nft.plan.__main__", "memory and seconds of a recipe, and layouts that fit"),
    Command("init", "megatron_nft.init.__main__", "write a recipe for a model, data and the GPUs at hand"),
    Command("config", "megatron_nft.config.__main__", "every setting of a recipe: default and meaning"),
    Command("smoke", "megatron_nft.smoke.__main__", "check one node's actor, and time a step"),
    Command("preflight", "megatron_nft.preflight.__main__", "are a job's nodes fit for this run?"),
    Command("train", "megatron_nft.train", "train a model from its own right and wrong answers"),
    Command("train-async", "megatron_nft.train_async", "the same, with engines that go on while the actor trains"),
    Command("sft", "megatron_nft.sft", "supervised training on given answers, a warm start"),
    Command("evaluate", "megatron_nft.evaluate", "a model on benchmarks: accuracies, the paper's table"),
    Command("report", "megatron_nft.report", "several runs on one page"),
    Command("replay", "megatron_nft.replay", "train again on batches that a run kept"),
    Command("convert hf-to-megatron", "checkpoint_tools.hf_to_megatron", "an HF folder -> a Megatron checkpoint"),
    Command("convert megatron-to-hf", "checkpoint_tools.megatron_to_hf", "a Megatron checkpoint -> an HF folder"),
    Command("verify", "checkpoint_tools.verify", "is a Megatron checkpoint the model of an HF folder?"),
    Command("inspect", "checkpoint_tools.show", "what is in a Megatron checkpoint"),
)

EXAMPLES = """
examples:
  megatron-nft doctor launch/recipes/quickstart.toml
  megatron-nft train launch/recipes/quickstart.toml actor.tp=1 run.seed=2
  megatron-nft evaluate launch/recipes/quickstart.toml --model runs/quickstart/hf --n 4

`megatron-nft COMMAND --help` has a command's arguments, examples and exit statuses.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit status: the command's, or 2 if there is no such command, 1 if a package is missing."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(f"usage: megatron-nft COMMAND ...\n\n{_table(COMMANDS)}\n{EXAMPLES}", end="")
        return 0
    command = next((c for c in COMMANDS if _typed(words, len(c.name.split())) == c.name), None)
    if command is None:
        return _unknown(words)
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if (words_of_it := what_is_missing(error, f"megatron-nft {command.name}")) is None:
            raise
        print(words_of_it, file=sys.stderr)
        return 1
    return module.main(words[len(command.name.split()) :])


def _typed(words: Sequence[str], count: int) -> str:
    """The first words; `train_async`, as the module is called, does as well."""
    return " ".join(words[:count]).replace("_", "-")


def _table(commands: Sequence[Command]) -> str:
    return "\n".join(f"  {command.name:24}{command.summary}" for command in commands)


def _unknown(words: Sequence[str]) -> int:
    first, *rest = words
    inner = [command for command in COMMANDS if command.name.startswith(f"{first} ")]  # of two words
    if inner and (not rest or rest[0] in ("-h", "--help")):
        print(f"usage: megatron-nft {first} DIRECTION ...\n\n{_table(inner)}")
        return 0
    names = [command.name for command in inner or COMMANDS]
    close = difflib.get_close_matches(_typed(words, 2 if inner else 1), names, cutoff=0.5)
    remedy = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names)}"
    print(f"error: megatron-nft has no command {' '.join(words[: 2 if inner else 1])!r}; {remedy}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
