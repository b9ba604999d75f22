"""What every section of a recipe has in common."""

import os
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict

PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder; ~ is the home: no shell has looked at what stands in a recipe, nor at `run.dir=~/runs`."""


class Section(BaseModel):
    """A group of settings: unknown keys fail, values are read-only once loaded.

    A section checks what its own settings say together, and raises a RecipeError that names them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    cuda_only: ClassVar[tuple[str, ...]] = ()
    """Settings that a CPU has no use for: schema.py refuses them there."""
