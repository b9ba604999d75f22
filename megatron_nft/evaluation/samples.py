"""samples.jsonl: the answers of an evaluation, kept as they come, so that an interrupted one goes on where it was.

The first line says what the samples are of (model, sampling); each line below is a prompt with all its answers. A line
that a killed process left half-written is dropped. Verdicts are not kept here: grading is cheap, and may be repeated.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_nft.config import RecipeError
from megatron_nft.evaluation.model_files import model_digest
from megatron_nft.observe.owner import Owner
from megatron_nft.types import Prompt, RolloutGroup

__all__ = ["Answer", "SamplesError", "SamplesFile", "model_digest"]

HEADER = "evaluation"
NEEDED = {"prompt_id", "digest", "answers"}
RUN_FILES = ("metrics.jsonl", "checkpoints")
"""A folder with one of these is a run's."""


class SamplesError(ValueError):
    """A samples file is another evaluation's, in use, or damaged. The message gives place, reason and remedy."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One sampled answer."""

    text: str
    num_tokens: int
    truncated: bool


class SamplesFile:
    """Opens or makes a samples.jsonl. A context manager; only one process may have a file open.

    Args:
        settings: what the samples depend on, besides the prompts; a file with others is refused.

    Raises:
        SamplesError: see above.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        if any((path.parent / name).exists() for name in RUN_FILES):
            raise SamplesError(
                f"{path.parent} is a run's folder, whose recipe.toml and report.html an evaluation would replace; "
                f"choose another --out, such as {path.parent / 'evaluation'}"
            )
        try:
            self._owner = Owner.take(path.parent, lambda line: print(line, flush=True))
        except RecipeError as error:
            raise SamplesError(str(error)) from None
        self._kept: dict[tuple[str, str], tuple[Answer, ...]] = {}  # (prompt_id, its digest)
        try:
            self._file = path.open("a+b")
        except OSError as error:
            self._owner.leave()
            raise SamplesError(f"can't write {path}: {error}; choose another --out") from None
        try:
            self._read(json.loads(json.dumps(settings)))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "SamplesFile":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._owner.leave()

    def answers(self, prompt: Prompt, count: int) -> tuple[Answer, ...] | None:
        """The prompt's answers, if `count` of them are kept."""
        answers = self._kept.get((prompt.prompt_id, _digest(prompt)), ())
        return answers if len(answers) == count else None

    def append(self, group: RolloutGroup) -> None:
        """Keeps a prompt's answers: on disk when it returns, whatever becomes of this process."""
        prompt = group.prompt
        answers = tuple(
            Answer(text=r.text, num_tokens=len(r.token_ids_A), truncated=r.truncated) for r in group.rollouts
        )
        self._write(
            {
                "prompt_id": prompt.prompt_id,
                "data_source": prompt.data_source,
                "digest": _digest(prompt),
                "prompt": prompt.text,
                "ground_truth": prompt.ground_truth,
                "answers": [asdict(answer) for answer in answers],
            }
        )
        self._kept[prompt.prompt_id, _digest(prompt)] = answers

    def _read(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()
        if torn:
            self._file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._write({HEADER: settings})
            return
        header, *records = [self._parse(line, number) for number, line in enumerate(lines, start=1)]
        there = header.get(HEADER)
        if not isinstance(there, dict):
            raise SamplesError(f"{self._path} is no evaluation's: its first line has no settings; choose another --out")
        for name in settings | there:
            if settings.get(name) != there.get(name):
                raise SamplesError(
                    f"{self._path} holds samples of another evaluation: {name} was {there.get(name)!r} there and is "
                    f"{settings.get(name)!r} now; choose another --out, or delete the file"
                )
        for number, record in enumerate(records, start=2):
            try:
                self._kept[record["prompt_id"], record["digest"]] = tuple(Answer(**a) for a in record["answers"])
            except (KeyError, TypeError):  # another file's lines behind these, or answers that are none
                raise SamplesError(f"{self._path}, line {number} is damaged; delete that line") from None

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not (HEADER in record or record.keys() >= NEEDED):
            raise SamplesError(f"{self._path}, line {number} is damaged; delete that line")
        return record

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()


def _digest(prompt: Prompt) -> str:
    data = prompt.token_ids_P.tobytes() + f"\0{prompt.ground_truth}\0{prompt.data_source}".encode()
    return hashlib.blake2b(data, digest_size=8).hexdigest()
