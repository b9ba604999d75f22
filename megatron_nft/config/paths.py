"""Paths in recipes and on command lines: ~ and $VARIABLE are replaced, wherever they stand.

A shell replaces ~ in a word that stands alone, not in run.dir=~/runs nor in --out=~/runs, and TOML replaces nothing: a
folder called ~ would be made, and one day somebody would type rm -rf ~.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def expanded(path: str) -> str:
    """A path with ~ and $VARIABLE replaced, as a shell does for words that stand alone: not for run.dir=~/runs.

    Raises:
        ValueError: a variable isn't set, there is no such user, or the path is empty.
    """
    for match in _VARIABLE.finditer(path):
        if not os.environ.get(name := match[1] or match[2]):
            raise ValueError(f"the variable {name} isn't set; set it, or write the path out")
    full = os.path.expanduser(_VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], path))
    if full.startswith("~"):
        raise ValueError(f"there is no home folder of {full.partition('/')[0]}; write the path out")
    if not full.strip():
        raise ValueError("the path is empty; write one, or leave the setting out")
    return full


PathText = Annotated[str, AfterValidator(expanded)]
"""A path: ~ and $VARIABLE are replaced."""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`overrides`: settings behind a recipe. Their default is what argparse asks for lest it call them required."""
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that override the recipe"
    )


def path_argument(text: str) -> Path:
    """For argparse: type=path_argument."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
