"""Files in the DAPO/verl schema -> benchmarks: every problem once, none left out silently. Called by evaluate.py.

A benchmark is a file, under the file's name. Published files often repeat every problem 32 times, for avg@32: such
repeats are merged, since the number of samples is a setting here.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_nft.config import DataConfig
from megatron_nft.data.prompts import DataError, load_rows, read_rows, stem_of
from megatron_nft.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The problems of one file."""

    name: str
    data_source: str  # of its first problem
    prompts: tuple[Prompt, ...]
    num_too_long: int  # beyond data.max_prompt_tokens; not asked
    repeats: int  # how often the file has every problem


def load_benchmarks(
    files: Sequence[str], tokenizer: "PreTrainedTokenizerBase", config: DataConfig, max_prompts: int = 0
) -> list[Benchmark]:
    """Reads, renders and tokenizes the problems of all files.

    Args:
        max_prompts: of each file, the first so many. 0: all.

    Raises:
        DataError: as `load_prompts` does; two files have the same name, or two problems of a file the same id.
    """
    names = [stem_of(file) for file in files]
    for name, count in Counter(names).items():
        if count > 1:
            same = ", ".join(file for file, its_name in zip(files, names, strict=True) if its_name == name)
            raise DataError(f"{count} data files are called {name} ({same}), and results go by that name; rename one")
    return [_load(file, name, tokenizer, config, max_prompts) for file, name in zip(files, names, strict=True)]


def _load(
    file: str, name: str, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, max_prompts: int
) -> Benchmark:
    rows = list(enumerate(read_rows(file)))
    if not rows:
        raise DataError(f"{file} has no rows")
    rows, repeats = _merge_repeats(rows)
    _check_ids(file, rows)
    loaded = load_rows(rows[: max_prompts or None], file, name, tokenizer, config)
    if not loaded.prompts:
        raise DataError(
            f"no prompt left of {file}: {loaded.num_too_long} longer than data.max_prompt_tokens = "
            f"{config.max_prompt_tokens}, {loaded.num_without_answer} without an answer"
        )
    return Benchmark(
        name=name,
        data_source=loaded.prompts[0].data_source,
        prompts=loaded.prompts,
        num_too_long=loaded.num_too_long,
        repeats=repeats,
    )


def _merge_repeats(rows: list[tuple[int, dict[str, Any]]]) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """The first of each problem, if the file has every problem equally often; else all."""
    contents = [json.dumps([row["prompt"], row["reward_model"]], sort_keys=True, default=str) for _, row in rows]
    counts = Counter(contents)
    repeats = set(counts.values())
    if len(repeats) > 1 or repeats == {1} or len(counts) == 1:
        return rows, 1
    first = {content: index for index, content in reversed(list(enumerate(contents)))}
    return [rows[index] for index in sorted(first.values())], repeats.pop()


def _check_ids(file: str, rows: Sequence[tuple[int, dict[str, Any]]]) -> None:
    seen: dict[str, int] = {}
    for number, row in rows:
        extra_info = row.get("extra_info")
        index = extra_info.get("index") if isinstance(extra_info, dict) else None
        if index is None:
            continue
        key = f"{row['data_source']}/{extra_info.get('split')}/{index}"
        if key in seen:
            raise DataError(
                f"{file}: rows {seen[key]} and {number} (counted from 0) have one id, extra_info.index = {index!r}; "
                "a problem that is there twice counts twice: remove one, or give them different ids"
            )
        seen[key] = number
