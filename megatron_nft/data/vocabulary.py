"""The files that hold a vocabulary, and whether a tokenizer's ids have rows in the model's embedding.

Asked by data/prompts.py of all that it tokenizes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_nft.data.errors import DataError
from megatron_nft.families.config_json import read_json

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""One of them is in a folder with a tokenizer: transformers makes up an empty one from a config.json alone."""


def within_vocabulary(
    all_token_ids: "Iterable[np.ndarray]", tokenizer: "PreTrainedTokenizerBase"
) -> "Iterator[np.ndarray]":
    """The same, checked. The rows that pad an embedding are none: transformers has none, actor and engine have zeros.

    Raises:
        DataError: a token has no row, by the config.json beside the tokenizer.
    """
    file = Path(tokenizer.name_or_path) / "config.json"
    rows = read_json(file).get("vocab_size") if file.is_file() else None
    for token_ids in all_token_ids:
        # Without a number it is a tokenizer by itself, or families/ says what is wrong with the model.
        if type(rows) is int and len(token_ids) and (largest := int(token_ids.max())) >= rows:
            raise DataError(
                f"token {tokenizer.convert_ids_to_tokens(largest)!r} of a prompt has id {largest}, but {file} says "
                f"vocab_size = {rows}; take the tokenizer that was published with the model, or give the embedding a "
                "row for each token (transformers: resize_token_embeddings)"
            )
        yield token_ids
