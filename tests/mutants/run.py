"""Mistakes put in by hand, one at a time: does the suite notice?

    python tests/mutants/run.py [NAME ...] [--control]     NAME: the beginning of a patch's name, such as 04

A patch beside this file (NN_name.patch) is a unified diff below lines that say what it breaks and which tests must
notice:

    Breaks: the sampler's position is not saved
    Noticed by: tests/unit/data/test_prompts.py [more of pytest's arguments, such as -k or --all]

Each is applied to a copy of the tree of its own (what git would add, never .venv), where the named tests run until the
first fails. Exit status 1 if a mistake goes unnoticed, 2 if a patch no longer applies or its tests can't be run. With
--control the named tests run without the patches, and must pass. Tests of tests/contract run by run.sh there, which
needs their environment (MEGATRON_NFT_CONTRACT_ENV, or the cached one).
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TREE = FOLDER.parents[1]
TIMEOUT_S = 900.0


class MutantError(Exception):
    """A patch or its header is of no use."""


@dataclass(frozen=True)
class Mutant:
    """One patch."""

    name: str
    patch: Path
    breaks: str
    noticed_by: tuple[tuple[str, ...], ...]
    """pytest's arguments, of one call after the other."""


def read_mutant(patch: Path) -> Mutant:
    """Raises MutantError where the header lacks something."""
    header, diff, _ = patch.read_text().partition("\n--- ")
    fields = [line.partition(": ") for line in header.splitlines()]
    breaks = " ".join(value for name, _, value in fields if name == "Breaks")
    noticed_by = tuple(tuple(shlex.split(value)) for name, _, value in fields if name == "Noticed by")
    if not (breaks and noticed_by and diff):
        raise MutantError(f"{patch.name}: needs lines `Breaks: ...` and `Noticed by: tests/...` above a unified diff")
    return Mutant(patch.stem, patch, breaks, noticed_by)


def find_mutants(names: Sequence[str]) -> list[Mutant]:
    """Those whose names begin so, or all. Raises MutantError for a name that none has."""
    patches = sorted(FOLDER.glob("*.patch"))
    for name in names:
        if not any(patch.stem.startswith(name) for patch in patches):
            raise MutantError(f"no patch {name}* in {FOLDER}")
    return [read_mutant(p) for p in patches if not names or p.stem.startswith(tuple(names))]


def apply(patch: Path, tree: Path, *options: str) -> None:
    """Raises MutantError if it does not apply as it is."""
    command = ["git", "apply", "--whitespace=nowarn", *options, str(patch)]
    # Inside another repository git would skip every file of the copy without a word.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise MutantError(f"{patch.name} no longer applies: make it anew for the tree as it is\n{done.stderr.rstrip()}")


@contextmanager
def copied_tree() -> Iterator[Path]:
    """The files that git has or would add, in a folder of their own."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=TREE, capture_output=True, text=True, check=True).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="mutant_") as folder:
        tree = Path(folder) / "tree"
        for name in filter(None, names):
            if (TREE / name).is_file():  # not one that is deleted and not yet committed
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_bytes((TREE / name).read_bytes())
                (tree / name).chmod((TREE / name).stat().st_mode)
        yield tree


def run_tests(tree: Path, calls: Sequence[Sequence[str]]) -> str | None:
    """The first test of the tree that fails, or None.

    Raises:
        MutantError: pytest could not run them: none was found, the import of one fails, or they don't end.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree)}  # before the folder in which the package is installed
    for arguments in calls:
        is_contract = arguments[0].startswith("tests/contract")  # has an environment of its own, and a command
        program = (
            ["tests/contract/run.sh", "--if-there", "-n", "0"] if is_contract else [sys.executable, "-m", "pytest"]
        )
        command = [*program, "-x", "-q", "-rfE", "--tb=no", *arguments]
        try:
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise MutantError(f"{shlex.join(arguments)} has not ended within {TIMEOUT_S:.0f} s") from None
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        if done.returncode == 1 and failed:
            return failed[1]
        if done.returncode != 0:
            raise MutantError(f"pytest {shlex.join(arguments)} ended with {done.returncode}\n{done.stdout[-2000:]}")
        if not re.search(r"^\d+ passed|, \d+ passed", done.stdout, re.MULTILINE):
            raise MutantError(f"pytest {shlex.join(arguments)} ran no test here\n{done.stdout[-2000:]}")
    return None


def judge(mutant: Mutant, *, control: bool) -> tuple[str, str]:
    """One word, and the test that noticed."""
    with copied_tree() as tree:
        if not control:
            apply(mutant.patch, tree)
        noticed = run_tests(tree, mutant.noticed_by)
    if control:
        return ("passes", "") if noticed is None else ("FAILS", noticed)
    return ("SURVIVED", mutant.breaks) if noticed is None else ("caught", noticed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--control", action="store_true", help="run the named tests without the patches")
    arguments = parser.parse_args()
    words: list[str] = []
    try:
        mutants = find_mutants(arguments.names)
    except MutantError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for mutant in mutants:
        start = time.monotonic()
        try:
            word, what = judge(mutant, control=arguments.control)
        except MutantError as error:
            word, what = "ERROR", str(error)
        words.append(word)
        print(f"{word:8}  {mutant.name:40}  {time.monotonic() - start:6.1f} s  {what}", flush=True)
    good = sum(word in ("caught", "passes") for word in words)
    print(f"mutants: {good} of {len(words)} {'pass' if arguments.control else 'caught'}")
    return 2 if "ERROR" in words else int(good < len(words))


if __name__ == "__main__":
    sys.exit(main())
