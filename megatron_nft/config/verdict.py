"""How answers are graded."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from megatron_nft.config.section import Section

VerdictMode = Literal["boxed", "strict_boxed", "answer_line", "last_number", "dapo_line", "whole_text"]
"""How an answer is found in a text, and compared: verdict/graders.py."""

OWN_GRADER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""A grader of one's own, "package.module:function": verdict/own_grader.py."""


def _known_mode(mode: str) -> str:
    if mode not in get_args(VerdictMode) and not OWN_GRADER.fullmatch(mode):
        known = ", ".join(get_args(VerdictMode))
        raise ValueError(f'choose one of {known}, or a function of your own as "package.module:function"')
    return mode


class VerdictConfig(Section):
    """Grading: which rule for which data, within which limits."""

    workers: int = Field(2, ge=1)
    """Grading processes; each can be killed without harm to the others. More than the driver's node has cores are
    shared out over all nodes."""
    deadline_s: float = Field(5.0, gt=0)
    """An answer whose grading takes longer, twice, leaves its group, under the kind "timeout"."""
    memory_gib: float = Field(2.0, gt=0)
    """Memory that grading an answer may take; one that takes more leaves its group, under the kind "error"."""
    batches: dict[str, Annotated[int, Field(ge=1)]] = Field({})
    """A grader of one's own -> how many answers it is called with at once: it takes lists, and returns one."""
    loose_rewards: list[str] = Field([])
    """Data sources whose answers may earn rewards by the mode "whole_text", which is unfit for that."""
    max_unparsable: float = Field(0.95, gt=0, le=1)
    """Share of a data source's answers, of each step's worth that is graded, in which no final answer was found. Beyond
    it the mode is taken to be the wrong one: `if_unparsable`. 1: never."""
    if_unparsable: Literal["stop", "warn"] = "stop"
    """"stop" ends the run before that step is trained on; "warn" goes on. Both show three of the answers."""
    thoughts: bool = True
    """The answer stands behind the last </think>, where there is one; a thought that is not finished has none."""
    modes: dict[str, Annotated[str, AfterValidator(_known_mode)]] = Field({})
    """data_source -> how its answers are graded, where verdict/graders.py's table is not to hold: a mode, or
    a function of one's own (verdict/README.md), {"gsm8k" = "last_number", "my/source" = "package.module:function"}."""
