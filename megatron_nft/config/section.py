"""What every section of a recipe has in common."""

from collections.abc import Iterator
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

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

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> Self:
        found = list(self.problems())
        if info.context is not None:  # a list, of somebody who wants to know all that is wrong
            info.context.extend(found)
        elif found:
            raise RecipeError("\n".join(found))
        return self
