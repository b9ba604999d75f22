"""Prompts: files in the DAPO/verl schema -> tokenized Prompts -> an endless, resumable, shuffled stream of them.

train draws PromptStream.take(n) each sampling round and saves state_dict() with a checkpoint; evaluate takes the
LoadedPrompts as they are. datasets and transformers (3 s each) are imported where used, not with this module.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_nft.config import DataConfig
from megatron_nft.data.errors import DataError
from megatron_nft.data.vocabulary import within_vocabulary
from megatron_nft.types import Prompt

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SCHEMA = (
    "prompt (a list of {role, content} messages), reward_model ({ground_truth}) and data_source (text); "
    "extra_info (a table) is for graders of one's own, other columns are ignored"
)
NEEDED_COLUMNS = ("prompt", "reward_model", "data_source")
READERS = {".parquet": "from_parquet", ".jsonl": "from_json", ".json": "from_json"}
# transformers makes up an empty tokenizer from a config.json alone, so that its success proves nothing.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
TEXTS_PER_BATCH = 1000  # tokenized at once: the tokenizer's own records are much larger than the token ids


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
                "now): the files, their order, the tokenizer or what [data] says of prompts changed; "
                "restore them, or start a new run from the checkpoint's weights"
            )
        if state["seed"] != self.seed:
            raise DataError(
                f"the checkpoint's data order has seed {state['seed']}, this run has {self.seed}; "
                f"set run.seed = {state['seed']}"
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
        DataError: no such folder, or no usable tokenizer in it.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder {folder} to load a tokenizer from; model.path must be a local HF folder")
    if not any((folder / name).exists() for name in VOCABULARY_FILES):
        raise DataError(
            f"no tokenizer in {folder} (none of {', '.join(VOCABULARY_FILES)}); copy the model's tokenizer files there"
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizer classes raise whatever their parsers do
        raise DataError(f"the tokenizer in {folder} does not load: {error}") from error


def load_prompts(files: Sequence[str], tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> LoadedPrompts:
    """Reads, renders and tokenizes the prompts of all files.

    Args:
        files: parquet or jsonl files, or names of data sets on the hub (their "train" split, or their only one).

    Raises:
        DataError: a file is missing or has another schema, a row has no prompt or (unless skipped) no ground truth,
            the tokenizer has no chat template where one is needed, or no prompt is left.
    """
    stems: set[str] = set()
    parts = [
        load_rows(enumerate(read_rows(file)), file, _unused_stem(file, stems), tokenizer, config) for file in files
    ]
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


def load_rows(
    rows: Iterable[tuple[int, dict[str, Any]]],
    file: str,
    stem: str,
    tokenizer: "PreTrainedTokenizerBase",
    config: DataConfig,
) -> LoadedPrompts:
    """Renders and tokenizes numbered rows of one file; the prompts' ids are stem/number.

    Raises:
        DataError: as `load_prompts` does.
    """
    if config.prompt_format == "chat" and not tokenizer.chat_template:
        raise DataError(
            f'the tokenizer of {tokenizer.name_or_path!r} has no chat template; set data.prompt_format = "plain", '
            "or add a chat_template to its tokenizer_config.json"
        )
    usable, prompts = [], []
    num_too_long = num_without_answer = 0
    for number, row in rows:
        gold = _ground_truth(row, file, number)
        if gold is not None:
            text = _render(row, file, number, tokenizer, config)
            usable.append((f"{stem}/{number}", text, gold, str(row["data_source"]), _extra_info(row, file, number)))
        elif config.missing_answer == "skip":
            num_without_answer += 1
        else:
            raise DataError(
                f"{file}, row {number} (counted from 0): no reward_model.ground_truth; "
                'add it, or set data.missing_answer = "skip" to drop such rows'
            )
    all_token_ids = within_vocabulary(_tokenize([text for _, text, *_ in usable], tokenizer, config), tokenizer)
    for (prompt_id, text, gold, source, extra_info), token_ids_P in zip(usable, all_token_ids, strict=True):
        if len(token_ids_P) > config.max_prompt_tokens:
            num_too_long += 1
            continue
        prompts.append(
            Prompt(
                prompt_id=prompt_id,
                text=text,
                token_ids_P=token_ids_P,
                ground_truth=gold,
                data_source=source,
                extra_info=extra_info,
            )
        )
    return LoadedPrompts(prompts=tuple(prompts), num_too_long=num_too_long, num_without_answer=num_without_answer)


def read_rows(file: str) -> "Dataset":
    """The rows of a file or a hub name, in the DAPO/verl schema.

    Raises:
        DataError: it is missing, can't be read or has another schema.
    """
    import datasets

    path = Path(file)
    is_hub_name = path.suffix not in READERS and re.fullmatch(r"[\w.-]+/[\w.-]+", file) and not path.exists()
    if not is_hub_name and not path.is_file():
        raise DataError(f"no data file {file} (looked in {os.getcwd()})")
    if not is_hub_name and path.suffix not in READERS:
        raise DataError(f"{file}: unknown kind of file; data comes as {', '.join(READERS)}")
    with _no_progress_bars(datasets):
        try:
            dataset = _from_hub(datasets, file) if is_hub_name else _from_file(datasets, path)
        except DataError:
            raise
        except Exception as error:  # pyarrow, json, datasets and the hub's client each raise their own
            reason = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
            remedy = "; offline, download it first and name its parquet files" if is_hub_name else ""
            raise DataError(f"{file} cannot be read: {reason}{remedy}") from error
    missing = [column for column in NEEDED_COLUMNS if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"{file} has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}. Needed: {SCHEMA}"
        )
    return dataset


def _from_file(datasets: Any, path: Path) -> "Dataset":
    # A cache folder of its own, gone at once: the user's may be read-only, or another run may write to it just now.
    with tempfile.TemporaryDirectory(prefix="megatron_nft_data_") as cache_dir:
        reader = getattr(datasets.Dataset, READERS[path.suffix])
        return reader(str(path), cache_dir=cache_dir, keep_in_memory=True)


def _from_hub(datasets: Any, name: str) -> "Dataset":
    splits = datasets.load_dataset(name)
    if "train" not in splits and len(splits) > 1:
        raise DataError(
            f"{name} has the splits {', '.join(splits)} and no train; save the one you mean as a parquet file"
        )
    return splits["train"] if "train" in splits else next(iter(splits.values()))


@contextmanager
def _no_progress_bars(datasets: Any) -> Iterator[None]:
    were_disabled = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()


def stem_of(file: str) -> str:
    """A file's name without folder and ending; a hub name's last part."""
    path = Path(file)
    return path.stem if path.suffix in READERS else path.name


def _unused_stem(file: str, stems: set[str]) -> str:
    """The file's stem, or "stem~2", "stem~3" ... where an earlier file has it: prompt ids must be unique."""
    stem = plain = stem_of(file)
    number = 1
    while stem in stems:
        number += 1
        stem = f"{plain}~{number}"
    stems.add(stem)
    return stem


def _ground_truth(row: dict[str, Any], file: str, number: int) -> str | None:
    reward_model = row["reward_model"] or {}
    if not isinstance(reward_model, dict):
        raise DataError(
            f"{file}, row {number}: reward_model is {reward_model!r}, not {{ground_truth}}. Needed: {SCHEMA}"
        )
    gold = reward_model.get("ground_truth")
    if not isinstance(gold, str | int | float | None):
        raise DataError(f"{file}, row {number}: ground_truth is a {type(gold).__name__}, not text or a number")
    return None if gold is None or not str(gold).strip() else str(gold)


def _extra_info(row: dict[str, Any], file: str, number: int) -> dict[str, Any]:
    """What JSON has not, such as a date, becomes text. Tables that are unlike each other may come as texts of JSON."""
    info = row.get("extra_info")
    try:
        info = json.loads(info) if isinstance(info, str) and info.strip() else info or {}
    except ValueError as error:
        raise DataError(f"{file}, row {number}: extra_info is text, but no JSON: {error}") from error
    if not isinstance(info, dict):
        raise DataError(f"{file}, row {number}: extra_info is a {type(info).__name__}, not a table. Needed: {SCHEMA}")
    return json.loads(json.dumps(info, default=str))


def _render(
    row: dict[str, Any], file: str, number: int, tokenizer: "PreTrainedTokenizerBase", config: DataConfig
) -> str:
    messages = row["prompt"]
    is_chat = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not messages or not is_chat:
        raise DataError(f"{file}, row {number}: prompt is {str(messages)[:80]!r}. Needed: {SCHEMA}")
    if config.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system_prompt}, *messages]
    if config.prompt_format == "plain":
        return "\n".join(message["content"] for message in messages)
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # the template is a program: it may refuse a role or an order
        raise DataError(f"{file}, row {number}: the chat template refuses the prompt: {error}") from error


def _tokenize(texts: list[str], tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> Iterator[np.ndarray]:
    # A chat template writes its own special tokens; a plain prompt gets the tokenizer's (Llama's begin-of-text).
    is_plain = config.prompt_format == "plain"
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        batch = tokenizer(texts[start : start + TEXTS_PER_BATCH], add_special_tokens=is_plain, verbose=False)
        for token_ids in batch["input_ids"]:
            yield np.asarray(token_ids, dtype=np.int32)


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(f"{prompt.prompt_id}\0{prompt.ground_truth}\0{prompt.data_source}\0".encode())
        digest.update(prompt.token_ids_P.tobytes())
    return digest.hexdigest()
