"""Prompts: files -> tokenized Prompts -> an endless, resumable, shuffled stream of them.

train draws PromptStream.take(n) each sampling round and saves state_dict() with a checkpoint; evaluate takes the
LoadedPrompts as they are. What files and rows may look like: files.py, rows.py. transformers (3 s) is imported where
used, not with this module.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_nft.config import DataConfig
from megatron_nft.data.chat import Renderer
from megatron_nft.data.errors import DataError
from megatron_nft.data.files import stem_of
from megatron_nft.data.rows import Message, Problem, read_problems
from megatron_nft.data.tokenizer import exact_tokenizer, tokenize
from megatron_nft.data.vocabulary import VOCABULARY_FILES, within_vocabulary
from megatron_nft.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class LoadedPrompts:
    """All usable prompts of some files, in the files' order."""

    prompts: tuple[Prompt, ...]
    num_too_long: int  # dropped: more than max_prompt_tokens tokens
    num_without_answer: int  # dropped: no ground truth (only with missing_answer = "skip")


class PromptStream:
    """Endless shuffled prompts, reshuffled each epoch. The order depends on the prompts and the seed alone."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        if not prompts:
            raise DataError("a prompt stream needs at least one prompt")
        self.prompts = prompts
        self.seed = seed
        self.epoch = 0
        self._position = 0  # in this epoch's order
        self._order = self._shuffled()

    @cached_property
    def _fingerprint(self) -> str:
        return _fingerprint(self.prompts)

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts. A call that crosses an epoch's end may hold a prompt twice."""
        taken: list[Prompt] = []
        while len(taken) < count:
            if self._position == len(self.prompts):
                self.epoch += 1
                self._position = 0
                self._order = self._shuffled()
            indices = self._order[self._position : self._position + count - len(taken)]
            taken += [self.prompts[index] for index in indices]
            self._position += len(indices)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """A few plain values for the checkpoint, from which a stream of the same prompts goes on."""
        return {
            "epoch": self.epoch,
            "position": self._position,
            "seed": self.seed,
            "num_prompts": len(self.prompts),
            "fingerprint": self._fingerprint,
        }

    def check(self, state: dict[str, Any]) -> None:
        """Whether `load_state_dict` can go on from this.

        Raises:
            DataError: the state belongs to other prompts or another seed, so the order would silently be another one.
        """
        if state["fingerprint"] != self._fingerprint:
            raise DataError(
                f"the checkpoint's data position is of other prompts ({state['num_prompts']} then, {len(self.prompts)} "
                "now): the files, their order, the tokenizer or a setting of [data] changed; "
                "restore them, or start a new run from the checkpoint's weights"
            )
        if state["seed"] != self.seed:
            raise DataError(
                f"the checkpoint's data order has seed {state['seed']}, this run has {self.seed}; "
                f"set run.seed = {state['seed']}, or give the run another run.name"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the saved stream stopped. Raises DataError as `check` does."""
        self.check(state)
        self.epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        # RandomState, not default_rng: numpy promises never to change its numbers, and a resume may meet a newer numpy.
        return np.random.RandomState([self.seed, self.epoch]).permutation(len(self.prompts))


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a local HF folder, from its files alone.

    Raises:
        DataError: no such folder, no usable tokenizer in it, or one that transformers makes another of.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder {folder} to load a tokenizer from; model.path must be a local HF folder")
    if not any((folder / name).exists() for name in VOCABULARY_FILES):
        raise DataError(
            f"no tokenizer in {folder} (none of {', '.join(VOCABULARY_FILES)}); copy the model's tokenizer files there"
        )
    return exact_tokenizer(folder)


def load_prompts(files: Sequence[str], tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> LoadedPrompts:
    """Reads, renders and tokenizes the prompts of all files.

    Args:
        files: parquet files, texts (files.py), or names of data sets on the hub.

    Raises:
        DataError: a file is missing or has another schema, a row has no prompt or (unless skipped) no ground truth,
            the tokenizer has no chat template where one is needed, or no prompt is left.
    """
    stems: set[str] = set()
    parts = [load_problems(read_problems(file), file, _unused_stem(file, stems), tokenizer, config) for file in files]
    loaded = LoadedPrompts(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        num_too_long=sum(part.num_too_long for part in parts),
        num_without_answer=sum(part.num_without_answer for part in parts),
    )
    if not loaded.prompts:
        raise DataError(
            f"no prompt left of {', '.join(files)}: {loaded.num_too_long} longer than data.max_prompt_tokens = "
            f"{config.max_prompt_tokens}, {loaded.num_without_answer} without an answer"
        )
    return loaded


def load_problems(
    problems: Iterable[Problem],
    file: str,
    stem: str,
    tokenizer: "PreTrainedTokenizerBase",
    config: DataConfig,
) -> LoadedPrompts:
    """Renders and tokenizes the problems of one file; the prompts' ids are stem/row.

    Raises:
        DataError: as `load_prompts` does.
    """
    renderer = Renderer(tokenizer, config)
    usable: list[tuple[Problem, str]] = []
    prompts = []
    num_too_long = num_without_answer = 0
    for problem in problems:
        if problem.ground_truth is not None:
            text = renderer.render(messages_to_ask(problem.messages, config), f"{file}, row {problem.number}")
            usable.append((problem, text))
        elif config.missing_answer == "skip":
            num_without_answer += 1
        else:
            raise no_answer(file, problem)
    texts, is_plain = [text for _, text in usable], config.prompt_format == "plain"
    all_token_ids = within_vocabulary(tokenize(texts, tokenizer, is_plain=is_plain), tokenizer)
    for (problem, text), token_ids_P in zip(usable, all_token_ids, strict=True):
        if len(token_ids_P) > config.max_prompt_tokens:
            num_too_long += 1
            continue
        if not len(token_ids_P):
            raise DataError(
                f"{file}, row {problem.number}: the tokenizer makes no token of the prompt {text[:80]!r}, and an "
                "engine can't go on from nothing; mend the row, or leave it out"
            )
        prompts.append(
            Prompt(
                prompt_id=f"{stem}/{problem.number}",
                text=text,
                token_ids_P=token_ids_P,
                ground_truth=problem.ground_truth,
                data_source=problem.data_source,
                extra_info=problem.extra_info,
            )
        )
    return LoadedPrompts(prompts=tuple(prompts), num_too_long=num_too_long, num_without_answer=num_without_answer)


def _unused_stem(file: str, stems: set[str]) -> str:
    """The file's stem, or "stem~2", "stem~3" ... where an earlier file has it: prompt ids must be unique."""
    stem = plain = stem_of(file)
    number = 1
    while stem in stems:
        number += 1
        stem = f"{plain}~{number}"
    stems.add(stem)
    return stem


def no_answer(file: str, problem: Problem) -> DataError:
    """What is said of a row without a ground truth."""
    return DataError(
        f"{file}, row {problem.number} (counted from 0): no ground truth; add it (in a solution: a last line "
        '#### NUMBER, or \\boxed{}), or set data.missing_answer = "skip" to drop such rows'
    )


def messages_to_ask(messages: Sequence[Message], config: DataConfig) -> list[Message]:
    """A problem's messages with data.system_prompt, where they have none of their own, and data.prompt_suffix."""
    asked = list(messages)
    if config.system_prompt and asked[0]["role"] != "system":
        asked.insert(0, {"role": "system", "content": config.system_prompt})
    if config.prompt_suffix:
        last = max((place for place, message in enumerate(asked) if message["role"] == "user"), default=len(asked) - 1)
        asked[last] = asked[last] | {"content": asked[last]["content"] + config.prompt_suffix}
    return asked


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(f"{prompt.prompt_id}\0{prompt.ground_truth}\0{prompt.data_source}\0".encode())
        digest.update(prompt.token_ids_P.tobytes())
    return digest.hexdigest()
