"""A tokenizer is that of the folder's files, or refused; and prompts have the special tokens that generation needs."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, processors

from megatron_nft.config import DataConfig
from megatron_nft.data.prompts import DataError, load_prompts, load_tokenizer
from megatron_nft.data.tokenizer import PROBES, num_added, stop_ids, tokenize

MODEL = Path("tests/assets/quickstart/model")
TEXTS = [
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for friends.",
    "Let $x$ be a real number such that $x^2 + 3x - 4 = 0$. Find the sum of all possible values of $x$.",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "def f(x):\n    return x + 1",
]
LLAMA = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
         "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}  # fmt: skip
KINDS = {
    "llama": LLAMA,
    "no space before": LLAMA | {"add_dummy_prefix": False},
    "unigram": {"model_type": "unigram", "byte_fallback": True},
    "symbols": LLAMA | {"user_defined_symbols": ["[INST]", "[/INST]"], "control_symbols": ["[TOOL]"]},
}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}


@pytest.fixture(scope="session")
def pieces(tmp_path_factory):
    """Kind -> a real sentencepiece model of 340 pieces."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "texts").write_text("\n".join(TEXTS * 50))
    for kind, settings in KINDS.items():
        SentencePieceTrainer.train(
            input=str(folder / "texts"), model_prefix=str(folder / kind), vocab_size=335, unk_id=0, bos_id=1, eos_id=2,
            pad_id=-1, minloglevel=2, **settings,
        )  # fmt: skip
    return {kind: folder / f"{kind}.model" for kind in KINDS}


def folder_of(tmp_path, family, tokenizer_config, model=None):
    """A model folder without weights: tokenizer.model alone, or the quickstart's tokenizer.json."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(model or MODEL / "tokenizer.json", folder / ("tokenizer.model" if model else "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": 700, "eos_token_id": 2}))
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def test_without_sentencepiece_a_tokenizer_model_says_what_it_needs(tmp_path, pieces, monkeypatch):
    """transformers by itself asks for tiktoken."""
    monkeypatch.setattr("megatron_nft.data.tokenizer.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"tokenizer\.model needs sentencepiece, which isn't installed: pip install"):
        load_tokenizer(folder_of(tmp_path, "llama", None, pieces["llama"]))
    (tmp_path / "json").mkdir()
    load_tokenizer(folder_of(tmp_path / "json", "qwen2", None))  # needs none


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("named", [NAMED | {"tokenizer_class": "LlamaTokenizer"}, None], ids=["named", "bare"])
def test_a_tokenizer_model_gives_sentencepieces_ids_or_is_refused(tmp_path, pieces, kind, family, named):
    processor = SentencePieceProcessor(model_file=str(pieces[kind]))
    folder = folder_of(tmp_path, family, named, pieces[kind])
    try:
        tokenizer = load_tokenizer(folder)
    except DataError as error:
        words = str(error)
        assert "tokenizer.model: transformers makes a" in words or "does not load" in words, words
        assert "put the tokenizer.json that was published with the model beside it" in words or "not load" in words
        assert (kind, family, named is None) != ("llama", "llama", False), "Llama 2's own folder"
        return
    for text in (*TEXTS, *PROBES):
        found = next(tokenize([text], tokenizer, is_plain=True)).tolist()
        assert found[len(found) - len(processor.encode(text)) :] == processor.encode(text), text


def test_a_plain_prompt_that_is_cut_otherwise_than_by_sentencepiece_is_refused(tmp_path, pieces):
    """Spaces at a text's beginning: the probes have none, a run's own prompts may."""
    folder = folder_of(tmp_path, "llama", NAMED | {"tokenizer_class": "LlamaTokenizer"}, pieces["llama"])
    tokenizer = load_tokenizer(folder)
    assert next(tokenize(["lead"], tokenizer, is_plain=True)).tolist()[0] == tokenizer.bos_token_id
    with pytest.raises(DataError, match=r"tokenizer.model: transformers makes a LlamaTokenizer .* which cuts ' lead'"):
        list(tokenize([" lead"], tokenizer, is_plain=True))


def test_tokens_that_were_added_to_a_tokenizer_model(tmp_path, pieces):
    """A ChatML tuning of a Llama 2: sentencepiece knows nothing of them, and is not asked."""
    added = ["<|im_start|>", "<|im_end|>"]
    named = NAMED | {"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": added}
    tokenizer = load_tokenizer(folder_of(tmp_path, "llama", named, pieces["llama"]))
    found = next(tokenize(["<|im_start|>user\nhi<|im_end|>\n"], tokenizer, is_plain=False)).tolist()
    assert {*tokenizer.convert_tokens_to_ids(added)} <= {*found}
    with pytest.raises(DataError, match="which cuts ' lead'"):
        list(tokenize(["<|im_start|>", " lead"], tokenizer, is_plain=False))


@pytest.mark.parametrize(
    ("name", "family"),
    [("LlamaTokenizerFast", "llama"), ("LlamaTokenizer", "qwen3"), ("LlamaTokenizerFast", "seed_oss"),
     ("Qwen2Tokenizer", "llama"), ("PreTrainedTokenizerFast", "mistral"), (None, "llama")],
)  # fmt: skip
def test_a_byte_level_tokenizer_json_under_any_class_is_read_as_it_is(tmp_path, name, family):
    """DeepSeek's distilled Llamas name LlamaTokenizerFast, of which transformers 5 makes a sentencepiece-like one."""
    named = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"} | ({"tokenizer_class": name} if name else {})
    folder = folder_of(tmp_path, family, named)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tokenizer = load_tokenizer(folder)
    for text in (*TEXTS, *PROBES, "  lead", "<|im_start|>user\nhi<|im_end|>"):
        assert next(tokenize([text + "."], tokenizer, is_plain=False)).tolist() == raw.encode(text + ".").ids
    told = [str(w.message) for w in said if "read as it lies there" in str(w.message)]
    assert bool(told) == (name in ("LlamaTokenizer", "LlamaTokenizerFast")), told


def test_a_normalizer_that_the_class_has_and_the_file_has_not(tmp_path):
    """Qwen2Tokenizer composes characters; this tokenizer.json, model_type qwen2 or not, was trained without."""
    folder = folder_of(tmp_path, "qwen2", {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|im_end|>"})
    text = json.loads((folder / "tokenizer.json").read_text())
    text["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(text))
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with pytest.warns(UserWarning, match="transformers makes a Qwen2Tokenizer of it"):
        tokenizer = load_tokenizer(folder)
    assert tokenizer("e\u0301", add_special_tokens=False)["input_ids"] == raw.encode("e\u0301").ids


def post_processed(folder, before=(), behind=()):
    """The folder's tokenizer.json, with special tokens put around a text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [(token, tokenizer.token_to_id(token)) for token in (*before, *behind)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*before, "$A", *behind]), special_tokens=list(dict(tokens).items())
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


NAMES = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


@pytest.mark.parametrize(
    ("before", "behind", "more", "first"),
    [
        ([], [], {}, []),
        (["<|im_start|>"], [], {}, ["<|im_start|>"]),
        ([], ["<|im_end|>"], {}, []),  # add_eos_token: an answer would go on behind the end
        (["<|im_start|>"], ["<|im_end|>"], {}, ["<|im_start|>"]),
        ([], [], {"add_bos_token": True}, ["<|im_start|>"]),  # DeepSeek's says so, and transformers 5 leaves it out
        (["<|im_start|>"], [], {"add_bos_token": True}, ["<|im_start|>"]),
    ],
)
def test_special_tokens_around_a_plain_prompt(tmp_path, before, behind, more, first):
    tokenizer = load_tokenizer(post_processed(folder_of(tmp_path, "llama", NAMES | more), before, behind))
    found = next(tokenize(["1 + 1"], tokenizer, is_plain=True)).tolist()
    assert found == tokenizer.convert_tokens_to_ids(first) + tokenizer("1 + 1", add_special_tokens=False)["input_ids"]
    chat = next(tokenize(["<|im_start|>1 + 1"], tokenizer, is_plain=False)).tolist()
    assert chat.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("text", "is_plain", "words"),
    [
        ("<|im_start|>1 + 1", True, "begins with '<|im_start|>' twice"),
        ("<|im_start|><|im_start|>1 + 1", False, "begins with '<|im_start|>' twice"),
        ("1 + 1<|im_end|>", False, "ends with '<|im_end|>', the end of a sequence"),
        ("1 + 1<|im_end|>", True, "ends with '<|im_end|>', the end of a sequence"),
    ],
)
def test_special_tokens_that_a_prompt_must_not_have(tmp_path, text, is_plain, words):
    tokenizer = load_tokenizer(post_processed(folder_of(tmp_path, "llama", NAMES), ["<|im_start|>"]))
    assert num_added(tokenizer) == (1, 0)
    with pytest.raises(DataError) as caught:
        list(tokenize([text], tokenizer, is_plain=is_plain))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("generation", "config", "found"),
    [
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 5}, {615, 7, 9}),
        ({"eos_token_id": 7}, {}, {615, 7}),
        ({}, {"eos_token_id": 5}, {615}),  # a generation_config.json stands in for config.json, eos_token_id or not
        (None, {"eos_token_id": [5, 6]}, {615, 5, 6}),
        (None, {}, {615}),
        (None, {"model_type": "llama"}, {615, 2}),
    ],
)
def test_ends_of_sequences(tmp_path, generation, config, found):
    model = shutil.copytree(MODEL, tmp_path / "model")
    keys = json.loads((model / "config.json").read_text())
    del keys["eos_token_id"]
    (model / "config.json").write_text(json.dumps(keys | config))
    (model / "generation_config.json").unlink()
    if generation is not None:
        (model / "generation_config.json").write_text(json.dumps(generation))
    assert stop_ids(load_tokenizer(model)) == found


@pytest.mark.parametrize("wrong", ['"615"', "[615, null]", "-1", "true", "2.0", '{"a": 1}'])
def test_ends_of_sequences_that_are_none(tmp_path, wrong):
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "generation_config.json").write_text(f'{{"eos_token_id": {wrong}}}')
    with pytest.raises(
        DataError, match=r"generation_config.json: eos_token_id = .* is neither a token's id nor a list"
    ):
        load_tokenizer(model)


def test_a_model_without_any_end_is_refused(tmp_path):
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "generation_config.json").unlink()
    for name, key in (("config.json", "eos_token_id"), ("tokenizer_config.json", "eos_token")):
        keys = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(keys | {key: None}))
    with pytest.raises(DataError, match=r"no end-of-sequence token, .* no answer would ever end"):
        load_tokenizer(model)


def test_prompts_of_a_sentencepiece_folder(tmp_path, pieces):
    """From rows to ids, by the way of a run."""
    folder = folder_of(tmp_path, "llama", NAMED | {"tokenizer_class": "LlamaTokenizer"}, pieces["llama"])
    row = {"data_source": "x", "prompt": [{"role": "user", "content": TEXTS[0]}], "reward_model": {"ground_truth": "2"}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = load_prompts(
        [str(tmp_path / "rows.jsonl")], load_tokenizer(folder), DataConfig(train=["unused"], prompt_format="plain")
    ).prompts
    processor = SentencePieceProcessor(model_file=str(pieces["llama"]))
    assert prompt.token_ids_P.tolist() == [processor.bos_id(), *processor.encode(TEXTS[0])]
