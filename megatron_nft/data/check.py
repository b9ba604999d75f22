"""What a run would say of its data files, row by row, before it starts. A second, not ten: it renders no chat template.

    python -m megatron_nft.data.check FILE ... [--skip-missing] [--model DIR --max-prompt-tokens N] [--json]

doctor calls it, in a process of its own: a library that is broken must not break the diagnosis. Exit status 0, or 2 if
a file can't be trained on.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from megatron_nft.data.benchmarks import each_once, names_of
from megatron_nft.data.errors import DataError
from megatron_nft.data.files import stem_of
from megatron_nft.data.prompts import no_answer
from megatron_nft.data.rows import Problem, read_problems

BUDGET_S = 1.2
"""Of this process's own time, for all files together; later rows of large ones are looked at when the run starts."""
ROWS_AT_ONCE = 200
ROWS_MEASURED = 2000
"""Whose questions are tokenized, if there is a tokenizer."""


@dataclass
class FileReport:
    """What a file is, as far as it was read."""

    file: str
    error: str = ""  # "": none
    rows: int = 0  # looked at
    is_whole: bool = False  # all of them
    without_answer: int = 0
    measured: int = 0  # rows whose length was looked at: the first ones
    too_long: int = 0  # of these; at least, as a chat template adds to them
    sources: dict[str, int] = field(default_factory=dict)  # data_source -> rows
    example: str = ""  # the first question, and what is right


class Lengths:
    """Questions beyond data.max_prompt_tokens.

    Args:
        model: folder of the tokenizer; one without a tokenizer.json counts nothing, and transformers says why.
    """

    def __init__(self, model: str | None, max_prompt_tokens: int) -> None:
        self.max_prompt_tokens, self._tokenizer = max_prompt_tokens, None
        if model is not None:
            from tokenizers import Tokenizer

            with suppress(Exception):
                self._tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")

    def too_long(self, texts: Sequence[str]) -> tuple[int, int]:
        """How many were looked at, and how many of these are too long."""
        if self._tokenizer is None:
            return 0, 0
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return len(texts), sum(len(one.ids) > self.max_prompt_tokens for one in encoded)


def check_files(
    files: Sequence[str],
    skips_missing: bool,
    budget_s: float = BUDGET_S,
    lengths: Lengths | None = None,
    held_out: Sequence[str] = (),
) -> list[FileReport]:
    """Reads the rows of each, for an equal part of the time that is left. Of those that are held out names and ids are
    looked at as well."""
    reports, until = [], time.process_time() + budget_s
    for place, file in enumerate(files):
        share = max(until - time.process_time(), 0.0) / (len(files) - place)
        until_then = time.process_time() + share
        reports.append(_check_file(file, skips_missing, until_then, lengths or Lengths(None, 0), held_out))
    return reports


def _check_file(file: str, skips_missing: bool, until: float, lengths: Lengths, held_out: Sequence[str]) -> FileReport:
    report, texts, problems = FileReport(file), [], []
    is_held_out = file in held_out
    try:
        if is_held_out:
            names_of([name for name in held_out if stem_of(name) == stem_of(file)])
        for problem in read_problems(file):
            if is_held_out:
                problems.append(problem)
            report.rows += 1
            report.example = report.example or _example(problem)
            report.sources[problem.data_source] = report.sources.get(problem.data_source, 0) + 1
            if problem.ground_truth is None:
                report.without_answer += 1
                if not skips_missing:
                    raise no_answer(file, problem)
            elif len(texts) < ROWS_MEASURED:
                texts.append("".join(message["content"] for message in problem.messages))
            if report.rows % ROWS_AT_ONCE == 0 and time.process_time() > until:
                break
        else:
            report.is_whole = True
            if is_held_out:
                each_once(file, problems)
        report.measured, report.too_long = lengths.too_long(texts)
        if report.is_whole and report.rows == report.without_answer:
            report.error = f"{file}: none of its {report.rows} rows has a ground truth"
        elif report.is_whole and report.measured == report.too_long == report.rows - report.without_answer:
            longest = lengths.max_prompt_tokens
            report.error = f"{file}: all of its {report.measured} prompts are longer than {longest} tokens"
    except DataError as found:
        report.error = str(found)
    return report


def _example(problem: Problem) -> str:
    question = " ".join(problem.messages[-1]["content"].split())
    question = question if len(question) <= 60 else f"... {question[-56:]}"
    return f"{question!r} -> {problem.ground_truth!r:.40}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m megatron_nft.data.check", description="What a run would say of these data files."
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--held-out", metavar="FILE", action="append", default=[], help="one of them that is held out")
    parser.add_argument("--skip-missing", action="store_true", help='as data.missing_answer = "skip"')
    parser.add_argument("--model", metavar="DIR", help="folder with a tokenizer.json, for lengths")
    parser.add_argument("--max-prompt-tokens", type=int, default=512, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="for programs; looks at large files for a second only")
    arguments = parser.parse_args(argv)
    lengths = Lengths(arguments.model, arguments.max_prompt_tokens)
    budget_s = BUDGET_S if arguments.json else float("inf")
    reports = check_files(arguments.files, arguments.skip_missing, budget_s, lengths, arguments.held_out)
    if arguments.json:
        print(json.dumps([asdict(report) for report in reports]))
    else:
        for r in reports:
            sources = ", ".join(f"{source} {count}" for source, count in r.sources.items())
            print(f"FAIL {r.error}" if r.error else f"ok   {r.file}: {r.rows} rows ({sources}); {r.example}")
    return 2 if any(report.error for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
