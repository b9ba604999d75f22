"""How answers are graded."""

from typing import Literal

from pydantic import Field

from megatron_nft.config.section import Section

VerdictMode = Literal["boxed", "strict_boxed", "answer_line", "last_number", "whole_text"]
"""How an answer is found in a text, and compared: verdict/graders.py."""


class VerdictConfig(Section):
    """Grading: which rule for which data, within which limits."""

    workers: int = Field(2, ge=1)
    """Grading processes; each can be killed without harm to the others."""
    deadline_s: float = Field(5.0, gt=0)
    """An answer whose grading takes longer counts as wrong, under the kind "timeout"."""
    memory_gib: float = Field(2.0, gt=0)
    """Memory that grading an answer may take; one that takes more counts as wrong, under the kind "error"."""
    modes: dict[str, VerdictMode] = Field({})
    """data_source -> how its answers are graded, where verdict/graders.py's table is not to hold:
    {"gsm8k" = "last_number"}."""
