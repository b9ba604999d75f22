"""How many prompts data files have, and how long they are under a model's tokenizer: what a recipe's limits follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_nft.config import DataConfig
from megatron_nft.data.benchmarks import load_benchmarks, prompts_of
from megatron_nft.data.prompts import load_prompts, load_tokenizer

ANY_LENGTH = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Of the training files."""

    count: int
    longest: int  # tokens
    most: int  # tokens that 99 of 100 prompts have at most
    held_out: int  # prompts


def measure(model: Path, data: Sequence[str], held_out: Sequence[str]) -> Prompts:
    """Reads and tokenizes all of them, as training will.

    Raises:
        DataError: a file or a row is not what it should be, or the model has no tokenizer.
    """
    tokenizer, config = load_tokenizer(str(model)), DataConfig(max_prompt_tokens=ANY_LENGTH)
    prompts = load_prompts(data, tokenizer, config).prompts
    lengths = sorted(len(prompt.token_ids_P) for prompt in prompts)
    others = prompts_of(load_benchmarks(held_out, tokenizer, config))
    return Prompts(
        count=len(lengths), longest=lengths[-1], most=lengths[int(0.99 * (len(lengths) - 1))], held_out=len(others)
    )
