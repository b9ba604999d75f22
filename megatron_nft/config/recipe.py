"""A recipe as text: TOML and `section.key=value` overrides -> a checked, read-only Config, and back.

Defaults stand on their fields; the recipe overrides them, the command line overrides the recipe. Called by every
command.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_nft.config.errors import RecipeError, explain, listed
from megatron_nft.config.layout import layout_problems
from megatron_nft.config.methods import left_behind
from megatron_nft.config.paths import expanded
from megatron_nft.config.schema import Config
from megatron_nft.families.adapter_folder import check_adapter
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.families.weight_files import check_weights, has_weights

PLACE = ("run.name", "run.dir", "run.overwrite")
"""Settings that say where a run's files are, and nothing of what it does."""
SHOWN = 8
"""Changed settings that are told."""
NO_DATA = "data.train is missing or empty; the recipe must name the training prompts' files"


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
        tree = tomllib.loads(Path(expanded(str(recipe))).read_text()) if recipe is not None else {}
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {recipe}; the shipped ones are in launch/recipes") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{recipe} is not valid TOML: {error}") from None
    except RecursionError:
        raise RecipeError(f"{recipe} is not valid TOML: it is nested too deeply") from None
    except OSError as error:
        raise RecipeError(f"the recipe {str(recipe)!r} can't be read: {error.strerror}; give a TOML file") from None
    except ValueError as error:
        raise RecipeError(f"the recipe {str(recipe)!r}: {error}") from None
    _apply_overrides(tree, overrides)
    config, problems, left_out = _validated(tree)
    if config is not None:
        more = [] if config.data.train or not trains else [NO_DATA]
        more += _problems_with_model(config, checks_weights, trains=trains, alone=not problems)
        problems += [line for line in more if not _speaks_of(line, left_out)]
    if problems or config is None:
        raise RecipeError(listed(recipe or "the settings", problems))
    return config


def _validated(tree: dict[str, Any]) -> tuple[Config | None, list[str], list[str]]:
    """The settings, all that is wrong with them, and the wrong ones, which were left out to see what else is.

    What is said of a setting that was left out may hold for its default only, and isn't repeated. Without the settings:
    one is missing.
    """
    problems: list[str] = []
    left_out: list[str] = []
    while True:
        together: list[str] = []
        try:
            config = Config.model_validate(tree, context=together)
        except ValidationError as error:
            wrong = error.errors()
        else:
            return config, problems + [line for line in together if not _speaks_of(line, left_out)], left_out
        said = [explain(problem, Config) for problem in wrong]
        problems += [line for line in said if line not in problems and not _speaks_of(line, left_out)]
        removed = [key for problem in wrong if (key := _remove(tree, problem["loc"])) is not None]
        if not removed:
            return None, problems + together, left_out
        left_out += removed


def _remove(tree: dict[str, Any], place: Sequence[Any]) -> str | None:
    """Takes out the setting, or the section, that a problem is of; returns its name."""
    section, *keys = place[:2]
    inner, key = (tree.get(section), keys[0]) if keys else (tree, section)
    if not isinstance(inner, dict) or key not in inner:
        return None
    del inner[key]
    return str(key)


def _speaks_of(line: str, settings: Sequence[str]) -> bool:
    """Whether a problem names one of these: "data.train", or "tp 2 x pp 1"."""
    return any(re.search(rf"\b{re.escape(setting)}\b", line) for setting in settings)


def _problems_with_model(config: Config, checks_weights: bool, *, trains: bool, alone: bool) -> list[str]:
    """What doesn't fit the model's folders, or is wrong with these.

    Args:
        trains: adapters are trained, or begun with.
        alone: nothing else is wrong: a model folder's error goes on as it is.
    """
    found: list[str] = []
    try:
        hf = read_hf_config(config.model.path)
        found += layout_problems(config, hf)
        if config.model.is_megatron:
            found += _problem_with_adapters(Path(config.model.path))
        for folder in (config.model.path, config.model.reference):
            if checks_weights and folder is not None and has_weights(folder):  # a plan needs none
                check_weights(folder, read_hf_config(folder))
        if trains and (adapters := config.lora.adapters) is not None and config.lora.adapter is not None:
            check_adapter(config.lora.adapter, hf, adapters)
        if config.algorithm.kl_weight and config.model.reference and read_hf_config(config.model.reference) != hf:
            found.append(
                f"model.reference = {config.model.reference!r} is not of the same architecture as model.path = "
                f"{config.model.path!r}; give the folder of an earlier state of the same model"
            )
    except ModelFolderError as error:
        if alone and not found:
            raise
        found.append(str(error))
    return found


def _problem_with_adapters(checkpoint: Path) -> list[str]:
    """A run's checkpoint has its recipe beside it, which says whether it holds the whole model."""
    try:
        saved = flat_settings((checkpoint / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not saved.get("lora.rank"):
        return []
    base = saved.get("model.path")
    return [
        f"model.path = {str(checkpoint)!r}: has adapters of {base} only (lora.rank = {saved['lora.rank']}); to go on "
        f"with them, set model.path = {base!r}, [lora] as there, and checkpoint.resume to this folder; to begin from "
        f"the model with them, make that first: megatron-nft convert megatron-to-hf --megatron {checkpoint} --base "
        f"{base} --out DIR"
    ]


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


def changed_settings(before: str, now: str) -> list[str]:
    """What two recipes' texts set differently, a line a setting; but for whose run it is, and where."""
    earlier, later = flat_settings(before), flat_settings(now)
    pairs = {name: (earlier.get(name), later.get(name)) for name in earlier | later if name not in PLACE}
    return [f"{name} {was} -> {now}" for name, (was, now) in pairs.items() if was != now]


def changes_in_words(changes: Sequence[str]) -> str:
    """The first of them, and how many there are besides."""
    rest = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return f"{'; '.join(changes[:SHOWN])}{rest}"


def _apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    given = [_parse_override(override) for override in overrides]
    if isinstance(algorithm := tree.get("algorithm"), dict):
        for key in left_behind(algorithm, {keys[0]: value for s, keys, value in given if s == "algorithm"}):
            algorithm.pop(key, None)
    for section, (*tables, key), value in given:
        place = tree.setdefault(section, {})
        if not isinstance(place, dict):
            continue  # it is refused as no section
        for depth, table in enumerate(tables, 1):
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                name = ".".join((section, *tables[:depth]))
                raise RecipeError(f"override {name}.{key}: {name} = {place!r} in the recipe, which is no table")
        place[key] = value


def _parse_override(override: str) -> tuple[str, list[str], Any]:
    """Section, key (several: of a table within it), value."""
    path, equals, text = override.partition("=")
    section, *keys = _keys(path.strip())
    if not (equals and section and keys and all(keys)):
        raise RecipeError(
            f"override {override!r} is not of the form section.key=value, e.g. actor.tp=2, evaluate.samples_of.aime24=8"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word: run.name=test
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"override {override[:60]!r} ... can't be read: {error}") from None
    return section, keys, value


def _keys(path: str) -> list[str]:
    """Of section.table.key; a key with a dot of its own goes in quotes, as in TOML."""
    if not {'"', "'"} & set(path):
        return path.split(".")
    try:
        tree = tomllib.loads(f"{path} = 0")
    except tomllib.TOMLDecodeError:
        return [""]
    keys = []
    while isinstance(tree, dict):
        ((key, tree),) = tree.items()
        keys.append(key)
    return keys
