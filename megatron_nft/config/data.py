"""The prompts of a run."""

import datetime
from typing import Literal

from pydantic import Field, field_validator

from megatron_nft.config.paths import PathText
from megatron_nft.config.section import Section


class DataConfig(Section):
    """Prompts: files, format, and which rows are left out."""

    train: list[PathText] = Field([])
    """Training prompts: parquet, jsonl or csv files, or names on the hub; megatron_nft/data/README.md says what is in
    them. A run needs some, `megatron_nft.evaluate` none."""
    held_out: list[PathText] = Field([])
    """Held-out prompts for evaluation, same schema. A file is a benchmark under its name: no two may have the same, and
    no two problems of a file the same extra_info.index. Empty: no evaluation."""
    prompt_format: Literal["chat", "plain"] = "chat"
    """"chat" applies the tokenizer's chat template; "plain" joins the messages' contents as they are."""
    date: str = "2024-07-26"
    """The day that a chat template is told it is, where it asks (Llama 3's do): the same prompts on every day."""
    system_prompt: str = ""
    """The system message of prompts that have none of their own. With "plain" it is the first line."""
    prompt_suffix: str = ""
    """Put behind every question as it stands, with the space or line break that it begins with: "\\nPut the answer into
    \\\\boxed{}." for questions that don't say what an answer looks like."""
    max_prompt_tokens: int = Field(512, ge=1)
    """Longer prompts are dropped and counted."""
    missing_answer: Literal["refuse", "skip"] = "refuse"
    """What to do with a row that has no ground truth: stop with its number, or skip and count it."""

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        datetime.date.fromisoformat(value)
        return value
