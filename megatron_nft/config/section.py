"""What every section of a recipe has in common."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings: unknown keys fail, values are read-only once loaded.

    A section checks what its own settings say together, and raises a RecipeError that names them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    cuda_only: ClassVar[tuple[str, ...]] = ()
    """Settings that a CPU has no use for: schema.py refuses them there."""
