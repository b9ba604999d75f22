"""A config.json's values, each with the type that transformers demands, or a ModelFolderError that names file and key.

`read_json` reads the file, `Keys` hands out its values. Used by the families' files. No heavy imports.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_nft.families.family import ModelFolderError

REMEDY = "take the config.json that was published with these weights"
ABSENT = object()


def read_json(file: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        ModelFolderError: it is not valid, or not an object.
        FileNotFoundError: there is none.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # beside JSON's own: no UTF-8, a number of thousands of digits
        raise ModelFolderError(f"{file} is not valid JSON: {error}") from None
    except RecursionError:
        raise ModelFolderError(f"{file} is not valid JSON: it is nested too deep") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ModelFolderError(f"{file}: {error.strerror}") from None
    if not isinstance(raw, dict):
        raise ModelFolderError(f"{file}: holds {type(raw).__name__}, not an object of keys; {REMEDY}")
    return raw


class Keys:
    """Values of one object, with defaults for those that are absent. Null is a value: only `optional` takes it."""

    def __init__(self, raw: Mapping[str, Any], file: Path, defaults: Mapping[str, Any], within: str = "") -> None:
        """
        Args:
            within: key of the object in the file, where it isn't the whole.
        """
        self.raw, self.file, self.defaults, self._within = raw, file, defaults, within

    def get(self, key: str) -> Any:
        """As it is; the default where it is absent, None where there is none."""
        return self.raw.get(key, self.defaults.get(key))

    def count(self, key: str) -> int:
        """A whole number from 1 on."""
        value = self._required(key)
        if type(value) is not int or value < 1:
            self.refuse(key, value, "is not a whole number from 1 on")
        return value

    def optional_count(self, key: str) -> int | None:
        """The same, or null."""
        return None if self.get(key) is None else self.count(key)

    def real(self, key: str) -> float:
        """A positive number that is written with a point or an exponent, as transformers wants it."""
        value = self._required(key)
        if type(value) is not float or not 0 < value < math.inf:
            self.refuse(key, value, "is not a positive number with a decimal point or an exponent")
        return value

    def number(self, key: str) -> float:
        """A positive number."""
        value = self._required(key)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            self.refuse(key, value, "is not a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self._required(key)
        if type(value) is not bool:
            self.refuse(key, value, "is neither true nor false")
        return value

    def refuse(self, key: str, value: Any, why: str, remedy: str = REMEDY) -> None:
        """
        Raises:
            ModelFolderError: always.
        """
        raise ModelFolderError(f"{self.file}: {self._within}{key} = {json.dumps(value)} {why}; {remedy}")

    def _required(self, key: str) -> Any:
        value = self.raw.get(key, self.defaults.get(key, ABSENT))
        if value is ABSENT:
            raise ModelFolderError(f"{self.file}: has no {self._within}{key}; {REMEDY}")
        return value
