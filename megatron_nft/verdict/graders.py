"""How the answers of a data source are graded: the modes, and which published data set needs which.

A data_source and the recipe's verdict.modes come in, a Grader goes out. Called by judge.py and agreement.py.

    boxed         the last \\boxed{...}, compared by math-verify: "0.5" is \\frac{1}{2}. The default.
    strict_boxed  DAPO's: the last \\boxed{...} within the last 100 characters, equal to the ground truth as text
    answer_line   the last line "Answer: ...", as DAPO's prompts ask for, or else the last box; by math-verify
    last_number   the last number of the text, or after GSM8K's "####"; compared as a number
    whole_text    math-verify's own search over the whole text, boxes, formulas and plain numbers

verdict.modes may name a function of one's own in place of a mode, too: own_grader.py.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megatron_nft.config import VerdictMode
from megatron_nft.types import Verdict
from megatron_nft.verdict.math_answer import judge_math, last_boxed
from megatron_nft.verdict.own_grader import judge_own
from megatron_nft.verdict.plain_answer import answer_line, judge_number, judge_same_text, last_number, strict_boxed
from megatron_nft.verdict.whole_text import judge_whole_text, whole_text


@dataclass(frozen=True, kw_only=True)
class Grader:
    """How answers of a data source are graded."""

    extract: Callable[[str], str | None]  # answer's text -> what is compared; runs in the driver, so it must be fast
    judge: Callable[..., Verdict]  # (extracted answer, ground truth) -> verdict; a module's function
    in_worker: bool = True  # judge may hang, or exhaust memory
    missing: str = ""  # detail of the verdict when nothing could be extracted
    is_own: bool = False  # judge takes the prompt's text and extra_info, too, and need not say the same tomorrow


MODES: dict[VerdictMode, Grader] = {
    "boxed": Grader(extract=last_boxed, judge=judge_math, missing=r"no \boxed{...} in the answer"),
    "strict_boxed": Grader(
        extract=strict_boxed,
        judge=judge_same_text,
        in_worker=False,
        missing=r"no whole \boxed{...} in the answer's last 100 characters",
    ),
    "answer_line": Grader(
        extract=answer_line, judge=judge_math, missing=r'neither a line "Answer: ..." nor \boxed{...} in the answer'
    ),
    "last_number": Grader(extract=last_number, judge=judge_number, in_worker=False, missing="no number in the answer"),
    "whole_text": Grader(extract=whole_text, judge=judge_whole_text, missing="the answer is empty"),
}

DEFAULT_MODE: VerdictMode = "boxed"

DATA_SOURCES: dict[str, VerdictMode] = {
    # Asks for "#### 18".
    "openai/gsm8k": "last_number",
    # DAPO-Math-17k as published: 'The last line of your response should be of the form Answer: $Answer'.
    "math_dapo": "answer_line",
    # The NFT authors' files, with boxes asked for instead.
    "math_dapo_boxed": "strict_boxed",
    "amc_dapo_boxed": "strict_boxed",
    "amc2023_dapo_boxed": "strict_boxed",
    "aime_2025_dapo_boxed": "strict_boxed",
}
"""data_source -> mode, where it isn't the default. Add yours here, or in the recipe's verdict.modes."""


def grader_of(data_source: str, modes: Mapping[str, str]) -> Grader:
    """The grader of a data source; `modes` (verdict.modes) overrides the table above."""
    mode = modes.get(data_source, DATA_SOURCES.get(data_source, DEFAULT_MODE))
    return MODES[mode] if mode in MODES else _own_grader(mode)


@functools.cache
def _own_grader(name: str) -> Grader:
    return Grader(extract=_all_of_it, judge=functools.partial(judge_own, name), is_own=True)


def _all_of_it(text: str) -> str:
    return text
