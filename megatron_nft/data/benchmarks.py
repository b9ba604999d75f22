"""Files of problems -> benchmarks: every problem once, none left out silently. Called by evaluate.py, and by run/ for
data.held_out.

A benchmark is a file, under the file's name. Published files often repeat every problem 32 times, for avg@32: such
repeats are merged, since the number of samples is a setting here.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_nft.config import DataConfig
from megatron_nft.data.errors import DataError
from megatron_nft.data.files import stem_of
from megatron_nft.data.prompts import load_problems
from megatron_nft.data.rows import Problem, read_problems
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
    num_without_answer: int  # with data.missing_answer = "skip": left out
    repeats: int  # how often the file has every problem

    @property
    def num_prompts(self) -> int:
        """Those that are too long included."""
        return len(self.prompts) + self.num_too_long

    @property
    def remarks(self) -> str:
        """What isn't asked, or less often than it is there, in brackets; "" if nothing."""
        remarks = [f"the file has each {self.repeats} times"] * (self.repeats > 1)
        remarks += [f"{self.num_too_long} too long: not asked, and wrong"] * (self.num_too_long > 0)
        remarks += [f"{self.num_without_answer} without an answer left out"] * (self.num_without_answer > 0)
        return f" ({'; '.join(remarks)})" if remarks else ""


def load_benchmarks(
    files: Sequence[str], tokenizer: "PreTrainedTokenizerBase", config: DataConfig, max_prompts: int = 0
) -> list[Benchmark]:
    """Reads, renders and tokenizes the problems of all files.

    Args:
        max_prompts: of each file, the first so many. 0: all.

    Raises:
        DataError: as `load_prompts` does; two files have the same name, or two problems of a file the same id.
    """
    names = names_of(files)
    return [_load(file, name, tokenizer, config, max_prompts) for file, name in zip(files, names, strict=True)]


def _load(
    file: str, name: str, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, max_prompts: int
) -> Benchmark:
    problems, repeats = each_once(file, list(read_problems(file)))
    loaded = load_problems(problems[: max_prompts or None], file, name, tokenizer, config)
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
        num_without_answer=loaded.num_without_answer,
        repeats=repeats,
    )


def prompts_of(benchmarks: Sequence[Benchmark]) -> tuple[Prompt, ...]:
    """All that are asked."""
    return tuple(prompt for benchmark in benchmarks for prompt in benchmark.prompts)


def names_of(files: Sequence[str]) -> list[str]:
    """Under which their results go. Raises DataError if two have the same."""
    names = [stem_of(file) for file in files]
    for name, count in Counter(names).items():
        if count > 1:
            same = ", ".join(file for file, its_name in zip(files, names, strict=True) if its_name == name)
            raise DataError(f"{count} data files are called {name} ({same}), and results go by that name; rename one")
    return names


def each_once(file: str, problems: Sequence[Problem]) -> tuple[list[Problem], int]:
    """The problems, each once, and how often the file has each. Raises DataError if two that differ have one id."""
    problems, repeats = _merge_repeats(problems)
    _check_ids(file, problems)
    return problems, repeats


def _merge_repeats(problems: Sequence[Problem]) -> tuple[list[Problem], int]:
    """The first of each problem, if the file has every problem equally often; else all. A row's ids don't matter."""
    contents = [json.dumps([p.messages, p.ground_truth, p.data_source], sort_keys=True) for p in problems]
    repeats = set(Counter(contents).values())
    if len(repeats) > 1:
        return list(problems), 1
    first = dict(zip(reversed(contents), reversed(problems), strict=True))
    return sorted(first.values(), key=lambda problem: problem.number), repeats.pop()


def _check_ids(file: str, problems: Sequence[Problem]) -> None:
    seen: dict[str, int] = {}
    for problem in problems:
        index = problem.extra_info.get("index")
        if index is None:
            continue
        key = f"{problem.data_source}/{problem.extra_info.get('split')}/{index}"
        if key in seen:
            raise DataError(
                f"{file}: rows {seen[key]} and {problem.number} (counted from 0) have one id, extra_info.index = "
                f"{index!r}; a problem that is there twice counts twice: remove one, or give them different ids"
            )
        seen[key] = problem.number
