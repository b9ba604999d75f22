"""The fields of vLLM's EngineArgs: whether what a recipe gives for them is of their types, on any machine.

EngineArgs itself takes any value; what looks at most of them is the config that it makes of them where the device is.
arguments.py asks here before.
"""

import dataclasses
import enum
import json
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError


class WrongTypeError(ValueError):
    """A value that is not of its field's type; the message names the field."""


def check_types(settings: Mapping[str, Any]) -> None:
    """By names that EngineArgs has, in a process that may import vllm.

    Raises:
        WrongTypeError: a value, or one in a table, is not of its field's type.
    """
    from vllm.config import SpeculativeConfig
    from vllm.engine.arg_utils import EngineArgs

    types = {field.name: field.type for field in dataclasses.fields(EngineArgs)}
    for name, value in settings.items():
        _check(name, value, types[name])
    if (method := settings.get("quantization")) is not None:
        _check_quantization(method)
    fields = SpeculativeConfig.__pydantic_fields__  # as a whole it needs the model's config, which needs the device
    for key, value in (settings.get("speculative_config") or {}).items():
        place = f"speculative_config.{key}"
        if (field := fields.get(key.replace("-", "_"))) is None:
            raise WrongTypeError(f"{place}: there is no such key; vLLM's SpeculativeConfig has {', '.join(fields)}")
        _check(place, value, field.annotation, *field.metadata)


def words(error: Exception, *within: str) -> str:
    """What is wrong, in one line; of pydantic's errors, what and where.

    Args:
        within: where the value is that pydantic was given.
    """
    if not isinstance(error, ValidationError):
        return ": ".join((*within, " ".join(str(error).split())))
    found = [
        (".".join(map(str, (*within, *each["loc"]))), each["msg"].removeprefix("Value error, "))
        for each in error.errors()
    ]
    return "; ".join(f"{place}: {reason}" if place else reason for place, reason in found)


def _check(place: str, value: Any, hint: Any, *limits: Any) -> None:
    if isinstance(hint, str):  # a name that EngineArgs's module hasn't: it makes an object of the value by itself
        return
    choices = [choice for choice in get_args(hint) or (hint,) if isinstance(choice, type)]
    table = next((choice for choice in choices if dataclasses.is_dataclass(choice)), None)
    names = next((each for each in choices if issubclass(each, enum.Enum) and not issubclass(each, int)), None)
    try:
        if table is not None:
            if not isinstance(value, dict):
                raise WrongTypeError(f"Input should be a table of vLLM's {table.__name__}")
            table(**value)
        elif names is not None and isinstance(value, str):  # vLLM takes them by name, in capitals or not
            is_known = value.upper() in names.__members__ or (value.lower() == "auto" and type(None) in choices)
            if not is_known and str not in choices:
                raise WrongTypeError(f"Input should be one of {', '.join(names.__members__)}")
        else:
            # Strictly, and as JSON: "3" is no number and "maybe" no boolean, but a list may be a set or a tuple.
            adapter = TypeAdapter(Annotated[hint, *limits] if limits else hint)
            adapter.validate_json(json.dumps(value), strict=True)
    except Exception as error:
        raise WrongTypeError(words(error, place)) from error


def _check_quantization(method: str) -> None:
    """By vLLM's lists: for its type any text would do."""
    from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    known = sorted({*QUANTIZATION_METHODS, *ONLINE_QUANT_SHORTHAND_NAMES})
    if method not in known:
        raise WrongTypeError(f"quantization: Unknown quantization method: {method}. Must be one of {', '.join(known)}")
