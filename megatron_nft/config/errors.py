"""What is said about a recipe that is wrong: value, reason and remedy, a line a problem."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel


class RecipeError(ValueError):
    """A recipe, an override or a path in it is wrong. The message gives the value, the reason and the remedy."""


def explain(problem: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """What is said of one of pydantic's problems with a recipe of that schema; it begins with the setting."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section = schema.model_fields.get(str(problem["loc"][0])) if len(problem["loc"]) > 1 else None
        known = section.annotation.model_fields if section else schema.model_fields
        return f"{where}: unknown key; known here: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where}: missing; the recipe must set it"
    message = problem["msg"].removeprefix("Value error, ")
    if not where or isinstance(problem.get("ctx", {}).get("error"), RecipeError):
        return message  # it names the settings itself
    return f"{where} = {problem['input']!r}: {message}"


def listed(what: Any, problems: Sequence[str]) -> str:
    """A recipe's problems, a line each."""
    return "\n".join([f"{what}:", *(f"  {line}" for problem in problems for line in problem.splitlines())])
