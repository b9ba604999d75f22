"""Every setting of a recipe, by section: its default, what it may be, what it means.

    megatron-nft config                    all sections
    megatron-nft config actor optimizer    these
    megatron-nft config actor.tp           one setting

In a recipe a setting stands under [section] as key = value; on a command line as section.key=value,
which overrides the recipe. Exit status: 0, or 2 if there is no such section or setting.
"""

import argparse
import difflib
import sys
import textwrap
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from megatron_nft.config.recipe import toml_value
from megatron_nft.config.schema import Config

WIDTH = 100
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="megatron-nft config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="SECTION[.KEY]", help="default: all sections")
    names = parser.parse_args(argv).names
    known = [*Config.model_fields, *(f"{s}.{key}" for s in Config.model_fields for key in fields_of(s))]
    for name in names:
        if name not in known:
            close = [k for k in known if k.endswith(f".{name}")] or difflib.get_close_matches(name, known, n=4)
            remedy = f"did you mean {' or '.join(close)}?" if close else f"sections: {', '.join(Config.model_fields)}"
            print(f"error: {name!r} is no section and no setting; {remedy}", file=sys.stderr)
            return 2
    print("\n\n".join(page(name) for name in names or Config.model_fields))
    return 0


def page(name: str) -> str:
    """A section's settings, or one setting ("section.key")."""
    section, _, key = name.partition(".")
    lines = [] if key else [f"[{section}]  {Config.model_fields[section].annotation.__doc__}"]
    for one, field in fields_of(section).items():
        if key in ("", one):
            lines += ["", *_setting(f"{section}.{one}" if key else one, field)]
    return "\n".join(lines).strip("\n")


def fields_of(section: str) -> dict[str, FieldInfo]:
    """The settings of a section."""
    return Config.model_fields[section].annotation.model_fields


def _setting(key: str, field: FieldInfo) -> list[str]:
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is None:
        value = f"{key}: {'required' if field.is_required() else 'unset'}"
    else:
        value = f"{key} = {toml_value(default)}"
    meaning = textwrap.wrap(field.description or "", WIDTH - 6, break_on_hyphens=False, break_long_words=False)
    return [f"  {value:40}  ({kind(field.annotation, field.metadata)})", *(f"      {line}" for line in meaning)]


def kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a setting may be, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inner[0], [m for a in inner[1:] for m in (a.metadata if isinstance(a, FieldInfo) else [a])])
    if origin in (Union, UnionType):
        return " or ".join(kind(a, metadata) for a in inner if a is not NoneType)
    if origin is Literal:
        return " | ".join(toml_value(choice) for choice in inner)
    if origin is list:
        return f"list of {kind(inner[0])}"
    if origin is dict:
        return f"table of {kind(inner[1])}"
    bounds = [f"{sign} {getattr(m, name):g}" for m in metadata for name, sign in BOUNDS.items() if hasattr(m, name)]
    return " ".join([PLAIN.get(annotation, "text"), " and ".join(bounds)]).strip()


if __name__ == "__main__":
    sys.exit(main())
