r"""How the answers of a data source are graded: the modes, and which published data set needs which.

A data_source and the recipe's verdict.modes come in, a Grader goes out. Called by judge.py, grading.py and
agreement.py.

    boxed         the last \boxed{...}, as mathematics (math_answer.py): "0.5" is \frac{1}{2}. The default.
    strict_boxed  DAPO's: the last \boxed{...} within the last 100 characters, equal to the ground truth as text
    dapo_line     DAPO's own grader of DAPO-Math-17k: the last line "Answer: ...", normalised, as text
    answer_line   the last line "Answer: ...", or else the last box, as mathematics
    last_number   the number after GSM8K's "####", or else the last of the text; compared as a number
    whole_text    math-verify's own search over the whole text. Unfit for rewards: "41 or 42" is right for 42.

verdict.modes may name a function of one's own in place of a mode, too: own_grader.py.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megatron_nft.config import VerdictMode
from megatron_nft.types import Verdict
from megatron_nft.verdict.boxes import last_boxed
from megatron_nft.verdict.dapo_line import dapo_line, judge_dapo_line
from megatron_nft.verdict.math_answer import judge_math
from megatron_nft.verdict.own_grader import judge_own
from megatron_nft.verdict.plain_answer import answer_line, judge_number, judge_same_text, last_number, strict_boxed
from megatron_nft.verdict.whole_text import judge_whole_text, whole_text


@dataclass(frozen=True, kw_only=True)
class Grader:
    """How answers of a data source are graded."""

    extract: Callable[[str], str | None]  # answer's text -> what is compared; linear in its length at most
    judge: Callable[..., Verdict]  # (extracted answer, ground truth) -> verdict; a module's function
    is_quick: bool = False  # judge never hangs and takes little memory
    is_math: bool = False  # judge takes the question as well
    missing: str = ""  # detail of the verdict when nothing could be extracted
    is_own: bool = False  # judge takes the prompt's text and extra_info, too, and need not say the same tomorrow


MODES: dict[VerdictMode, Grader] = {
    "boxed": Grader(extract=last_boxed, judge=judge_math, is_math=True, missing=r"no \boxed{...} in the answer"),
    "strict_boxed": Grader(
        extract=strict_boxed,
        judge=judge_same_text,
        is_quick=True,
        missing=r"no whole \boxed{...} in the answer's last 100 characters",
    ),
    "dapo_line": Grader(
        extract=dapo_line,
        judge=judge_dapo_line,
        is_quick=True,
        missing='no line "Answer: ..." in the answer\'s last 300 characters',
    ),
    "answer_line": Grader(
        extract=answer_line,
        judge=judge_math,
        is_math=True,
        missing=r'neither a line "Answer: ..." nor \boxed{...} in the answer',
    ),
    "last_number": Grader(
        extract=last_number, judge=judge_number, is_quick=True, missing="no one number in the answer"
    ),
    "whole_text": Grader(extract=whole_text, judge=judge_whole_text, missing="the answer is empty"),
}

DEFAULT_MODE: VerdictMode = "boxed"

DATA_SOURCES: dict[str, VerdictMode] = {
    # Asks for "#### 18".
    "openai/gsm8k": "last_number",
    # DAPO-Math-17k as published: 'The last line of your response should be of the form Answer: $Answer'.
    "math_dapo": "dapo_line",
    # The NFT authors' files, with boxes asked for instead.
    "math_dapo_boxed": "strict_boxed",
    "amc_dapo_boxed": "strict_boxed",
    "amc2023_dapo_boxed": "strict_boxed",
    "aime_2025_dapo_boxed": "strict_boxed",
}
"""data_source -> mode, where it isn't the default. Add yours here, or in the recipe's verdict.modes."""


def mode_of(data_source: str, modes: Mapping[str, str]) -> str:
    """The mode of a data source; `modes` (verdict.modes) overrides the table above."""
    return modes.get(data_source, DATA_SOURCES.get(data_source, DEFAULT_MODE))


def grader_of(data_source: str, modes: Mapping[str, str]) -> Grader:
    """The grader of a data source."""
    return grader_named(mode_of(data_source, modes))


@functools.cache
def grader_named(mode: str) -> Grader:
    """The grader of a mode, or of a function of one's own."""
    if mode in MODES:
        return MODES[mode]
    return Grader(extract=_all_of_it, judge=functools.partial(judge_own, mode), is_own=True)


def _all_of_it(text: str) -> str:
    return text
