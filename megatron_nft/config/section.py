"""What every section of a recipe has in common."""

from collections.abc import Iterator
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from megatron_nft.config.errors import RecipeError


class Section(BaseModel):
    """A group of settings: unknown keys fail, values are read-only once loaded.

    A section says what is wrong with its own settings together in `problems`: all of it, a line each that names them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    cuda_only: ClassVar[tuple[str, ...]] = ()
    """Settings that a CPU has no use for: schema.py refuses them there."""

    def problems(self) -> Iterator[str]:
        """What its settings can't be together; each has a right value by itself."""
        yield from ()

    @field_validator("*", mode="before")
    @classmethod
    def _takes_no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would make 1 of true, also within a table."""
        annotation = cls.model_fields[info.field_name].annotation
        is_number = _is_of(annotation, (int, float)) and not _is_of(annotation, (bool, Any))
        if is_number and (place := _flag_in(value)) is not None:
            raise ValueError(f"{place or 'it'} is true or false, which is no number; give one, or leave it out")
        return value

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> Self:
        found = list(self.problems())
        if info.context is not None:  # a list, of somebody who wants to know all that is wrong
            info.context.extend(found)
        elif found:
            raise RecipeError("\n".join(found))
        return self


def _is_of(annotation: Any, types: tuple[Any, ...]) -> bool:
    """Whether a value of one of these may be the setting's, or within it."""
    parts = get_args(annotation)  # of a Literal its values
    return annotation in types or any(_is_of(part, types) or type(part) in types for part in parts)


def _flag_in(value: Any) -> str | None:
    """The key of a table under which there is one; "" without a table; None: there is none."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, dict):
        return next((str(key) for key, one in value.items() if _flag_in(one) is not None), None)
    if isinstance(value, list | tuple):
        return next((place for one in value if (place := _flag_in(one)) is not None), None)
    return None
