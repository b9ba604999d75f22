"""The quickstart's tokenizer: Qwen2's scheme with a vocabulary of its own, one token for each word of the problems.

Sample texts come in, a `Qwen2Tokenizer` goes out (transformers loads nothing else for a Qwen2 folder, so words are
split as Qwen splits them: one token a digit). Any text survives a round trip: unknown words fall apart into bytes.
Whole words keep prompts short, and prompts cost as much as answers in training.
"""

from collections.abc import Iterable

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACE = "Ġ"
"""A space in the byte-level alphabet."""


def build_tokenizer(texts: Iterable[str], *, multiple_of: int = 64) -> Qwen2Tokenizer:
    """A tokenizer that has every word of `texts` as one token, and a multiple of `multiple_of` tokens in all."""
    alphabet = byte_alphabet()
    splitter = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(alphabet)})._tokenizer.pre_tokenizer
    merges = spell_out({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    pieces = [*alphabet, *(left + right for left, right in merges)]
    special = [PAD, START, END]
    # Reserved tokens fill the vocabulary, so that every id which the model can sample is a token.
    num_reserved = -(len(pieces) + len(special)) % multiple_of
    special += [f"<|reserved_{i}|>" for i in range(num_reserved)]
    return Qwen2Tokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=merges,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def spell_out(words: set[str]) -> list[tuple[str, str]]:
    """BPE merges that build each word letter by letter from the left.

    BPE applies the earliest merge in the list that fits anywhere in a word. Words with a leading space come first:
    their merges fit only at a word's start, so that no merge of another word gets in between.
    """
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(words, key=lambda word: (not word.startswith(SPACE), word)):
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
    return list(merges)


def byte_alphabet() -> list[str]:
    """The 256 letters in which byte-level BPE writes bytes, in a fixed order."""
    return sorted(ByteLevel.alphabet())
