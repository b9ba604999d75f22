"""The prompts of a run."""

from typing import Literal

from pydantic import Field

from megatron_nft.config.section import Section


class DataConfig(Section):
    """Prompts: files, format, and which rows are left out."""

    train: list[str] = Field([])
    """Training prompts: parquet or jsonl files, or names on the hub, in the DAPO/verl schema. A run needs some,
    `megatron_nft.evaluate` none."""
    held_out: list[str] = Field([])
    """Held-out prompts for evaluation, same schema. Empty: no evaluation."""
    prompt_format: Literal["chat", "plain"] = "chat"
    """"chat" applies the tokenizer's chat template; "plain" joins the messages' contents as they are."""
    system_prompt: str = ""
    """A system message put before every prompt that has none of its own, in place of a chat template's default one.
    Empty: none."""
    max_prompt_tokens: int = Field(512, ge=1)
    """Longer prompts are dropped and counted."""
    missing_answer: Literal["refuse", "skip"] = "refuse"
    """What to do with a row that has no ground truth: stop with its number, or skip and count it."""
