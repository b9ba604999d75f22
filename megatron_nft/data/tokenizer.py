"""A folder's tokenizer, held against the folder's own files; and the ids of texts as generation needs them.

transformers makes a tokenizer anew by a class that it picks by name: a byte-level tokenizer.json under the name
"LlamaTokenizerFast" (DeepSeek's), or Mistral's tokenizer.model, become another tokenizer without a word. So its ids are
compared with those of the files themselves. Called by data/prompts.py.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_nft.data.errors import DataError
from megatron_nft.families.config_json import read_json
from megatron_nft.families.family import ModelFolderError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
PROBES = (
    "Janet's 16 ducks lay 1234567 eggs.\n\nHow many don't hatch?",
    "Let $x^2 + 3x - 4 = 0$; find \\boxed{\\frac{a}{b}}  (two spaces).",
    "def f(x):\n    return x + 1\t# tab",
    "Übung – naïve e\u0301, ½ ﬁ Ⅷ, 数学の問題, Задача, 🙂",
)
"""Without spaces at their ends: there sentencepiece, Llama 2's own tokenizer.json and transformers all differ."""
TEXTS_PER_FILE = 100
"""Of a run's own prompts, as many are compared as well."""
TEXTS_PER_BATCH = 1000  # tokenized at once: the tokenizer's own records are much larger than the token ids
DEFAULT_STOPS = {"llama": 2, "mistral": 2, "seed_oss": 2}
"""eos_token_id of transformers' configuration classes, where config.json has none."""
SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True)
class Reference:
    """A folder's own file, without transformers."""

    file: Path
    ids: Callable[[str], list[int]]  # of a text
    takes_whole: frozenset[str]  # tokens that it finds in a text
    takes_apart: frozenset[str] = frozenset()  # tokens that are meant where a text has them, and that it cuts up


def exact_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """What transformers makes of the folder; where that is another tokenizer than its tokenizer.json: that, as it is.

    Raises:
        DataError: it does not load, or gives other ids than the folder's file, or no answer of it would ever end.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / SENTENCEPIECE).is_file() and not (folder / JSON).is_file() and not find_spec("sentencepiece"):
        raise DataError(
            f"{folder / SENTENCEPIECE} needs sentencepiece, which isn't installed: pip install sentencepiece"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        wrong = difference(PROBES, tokenizer)
        if wrong and (folder / JSON).is_file():
            warnings.warn(
                f"{wrong}; it is read as it lies there, and other programs need tokenizer_class = "
                '"PreTrainedTokenizerFast" in tokenizer_config.json',
                stacklevel=3,
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            wrong = difference(PROBES, tokenizer)
    except Exception as error:  # the tokenizer classes raise whatever their parsers do
        why = " ".join(str(error).split())
        raise DataError(f"the tokenizer in {folder} does not load: {why}; fetch its files again") from error
    if wrong:
        raise DataError(f"{wrong}; put the tokenizer.json that was published with the model beside it")
    if (folder / "config.json").is_file() and not stop_ids(tokenizer):
        raise DataError(
            f"{folder}: no end-of-sequence token, neither of the tokenizer nor in generation_config.json or "
            "config.json (eos_token_id): no answer would ever end; add it"
        )
    return tokenizer


def difference(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Where it gives other ids than its folder's file; None: nowhere, or there is no such file."""
    if (reference := _reference(tokenizer.name_or_path)) is None:
        return None
    silent_on = reference.takes_apart | (tokenizer.get_added_vocab().keys() - reference.takes_whole)
    for text in texts:
        if any(token in text for token in silent_on):
            continue
        found, expected = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], reference.ids(text)
        if found != expected:
            both = enumerate(zip(found, expected, strict=False))
            first = max(0, next((i for i, (one, other) in both if one != other), len(found)) - 1)
            mine, its = (tokenizer.convert_ids_to_tokens(ids[first : first + 4]) for ids in (found, expected))
            return (
                f"{reference.file}: transformers makes a {type(tokenizer).__name__} of it, which cuts "
                f"{text[:SHOWN]!r} into other tokens than the file itself, on which the model was trained ({mine} for "
                f"{its})"
            )
    return None


@lru_cache(maxsize=2)
def _reference(folder: str) -> Reference | None:
    if (file := Path(folder) / JSON).is_file():
        from tokenizers import Tokenizer

        whole = Tokenizer.from_file(str(file))
        whole.no_truncation()
        whole.no_padding()
        known = frozenset(whole.get_vocab())
        return Reference(file, lambda text: whole.encode(text, add_special_tokens=False).ids, known)
    if not (file := Path(folder) / SENTENCEPIECE).is_file():
        return None
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(file))
    except RuntimeError:  # tiktoken's files have that name, too
        return None
    controls = frozenset(processor.id_to_piece(i) for i in range(len(processor)) if processor.is_control(i))
    return Reference(file, processor.encode, frozenset(), controls)


def tokenize(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, is_plain: bool) -> Iterator[np.ndarray]:
    """Ids of each text, as generation needs them. A chat template writes its own special tokens; a plain prompt gets
    those that the tokenizer puts before a text, and none behind it.

    Raises:
        DataError: a text already begins with what the tokenizer puts there, or ends with the end of a sequence.
    """
    if wrong := difference(texts[:TEXTS_PER_FILE], tokenizer):
        raise DataError(f"{wrong}; change those texts, or put another tokenizer.json there")
    bos, stops = tokenizer.bos_token_id, stop_ids(tokenizer)
    num_before, num_behind = num_added(tokenizer) if is_plain else (0, 0)
    # transformers 5 leaves it out where tokenizer.json doesn't have it, whatever tokenizer_config.json says.
    first = [bos] if is_plain and not num_before and bos is not None and _adds_bos(tokenizer) else []
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        batch = texts[start : start + TEXTS_PER_BATCH]
        for text, ids in zip(
            batch, tokenizer(batch, add_special_tokens=is_plain, verbose=False)["input_ids"], strict=True
        ):
            token_ids = first + ids[: len(ids) - num_behind]
            if bos is not None and token_ids[:2] == [bos, bos]:
                raise DataError(
                    f"the prompt {text[:SHOWN]!r} begins with {tokenizer.bos_token!r} twice: it has one of its own, "
                    "and the tokenizer or the chat template puts one before it; take the first out of the data"
                )
            if token_ids and token_ids[-1] in stops:
                raise DataError(
                    f"the prompt {text[:SHOWN]!r} ends with {tokenizer.convert_ids_to_tokens(token_ids[-1])!r}, the "
                    "end of a sequence: no model goes on from there; take it out of the data or the chat template"
                )
            yield np.asarray(token_ids, dtype=np.int32)


def num_added(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """How many special tokens it puts before and behind a text."""
    bare, whole = (tokenizer("1", add_special_tokens=added)["input_ids"] for added in (False, True))
    before = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return before, len(whole) - before - len(bare)


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    file = Path(tokenizer.name_or_path) / "tokenizer_config.json"
    return file.is_file() and read_json(file).get("add_bos_token") is True


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Tokens that end an answer, as vLLM has them: the tokenizer's, and those of generation_config.json, or if there is
    none of config.json.

    Raises:
        DataError: eos_token_id is neither a token's id nor a list of such.
    """
    own = tokenizer.eos_token_id
    return frozenset([] if own is None else [own]) | _stop_ids_of_files(tokenizer.name_or_path)


def _stop_ids_of_files(folder: str) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        if not (file := Path(folder) / name).is_file():
            continue
        try:
            keys = read_json(file)
        except ModelFolderError as error:
            raise DataError(str(error)) from None
        value: Any = keys.get("eos_token_id", DEFAULT_STOPS.get(str(keys.get("model_type"))))
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise DataError(f"{file}: eos_token_id = {value!r} is neither a token's id nor a list of ids; mend it")
        return frozenset(ids)
    return frozenset()
