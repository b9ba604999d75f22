"""A recipe as text: TOML and `section.key=value` overrides -> a checked, read-only Config, and back.

Defaults stand on their fields; the recipe overrides them, the command line overrides the recipe. Called by every
command.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_nft.config.errors import RecipeError, explain
from megatron_nft.config.layout import check_layout
from megatron_nft.config.methods import left_behind
from megatron_nft.config.schema import Config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.weight_files import check_weights, has_weights


def load_config(
    recipe: str | Path | None, overrides: Sequence[str] = (), *, trains: bool = True, checks_weights: bool = True
) -> Config:
    """Reads a recipe, applies `section.key=value` overrides, checks it against the model's own config.json.

    Args:
        recipe: TOML file; None: the overrides and the defaults are all.
        trains: whether it is a training run's, which needs training data.
        checks_weights: whether the files of weights that lie in a model folder must be its config.json's.

    Raises:
        RecipeError: the file, a key, a value, or the model folder is wrong; every problem found is listed.
    """
    try:
        tree = tomllib.loads(Path(recipe).read_text()) if recipe is not None else {}
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {recipe}; the shipped ones are in launch/recipes") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{recipe} is not valid TOML: {error}") from None
    _apply_overrides(tree, overrides)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(explain(problem, Config) for problem in error.errors())
        raise RecipeError(f"{recipe or 'the settings'}:\n{problems}") from None
    if trains and not config.data.train:
        raise RecipeError(f"{recipe}: data.train is missing or empty; the recipe must name the training prompts' files")
    hf = read_hf_config(config.model.path)
    check_layout(config, hf)
    for folder in (config.model.path, config.model.reference):
        if checks_weights and folder is not None and has_weights(folder):  # a plan needs none
            check_weights(folder, read_hf_config(folder))
    if config.algorithm.kl_weight and read_hf_config(config.model.reference) != hf:
        raise RecipeError(
            f"model.reference = {config.model.reference!r} is not of the same architecture as model.path = "
            f"{config.model.path!r}; give the folder of an earlier state of the same model"
        )
    return config


def to_toml(config: Config) -> str:
    """The resolved recipe as TOML: what `load_config` reads back to an equal `Config`."""
    lines = []
    for section, values in config.model_dump(exclude_none=True).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """JSON is TOML, but for tables."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {toml_value(v)}" for k, v in value.items()) + "}"


def flat_settings(recipe: str) -> dict[str, Any]:
    """What a recipe's text sets, as "section.key" -> value, without any check."""
    return {f"{s}.{key}": value for s, keys in tomllib.loads(recipe).items() for key, value in keys.items()}


def _apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    given: dict[str, dict[str, Any]] = {}
    for override in overrides:
        section, key, value = _parse_override(override)
        given.setdefault(section, {})[key] = value
    if isinstance(algorithm := tree.get("algorithm"), dict):
        for key in left_behind(algorithm, given.get("algorithm", {})):
            algorithm.pop(key, None)
    for section, values in given.items():
        tree.setdefault(section, {}).update(values)


def _parse_override(override: str) -> tuple[str, str, Any]:
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not (equals and dot and section and key):
        raise RecipeError(f"override {override!r} is not of the form section.key=value, e.g. actor.tp=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word: run.name=test
    return section, key, value
