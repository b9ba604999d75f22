"""Chat templates: what they leave out of a prompt is refused, what they ask of the clock stands still."""

import datetime
import warnings

import pytest

from megatron_nft.config import DataConfig, RecipeError, load_config
from megatron_nft.data.chat import Renderer
from megatron_nft.data.prompts import DataError, load_tokenizer

USER, SYSTEM = {"role": "user", "content": "What is 1 + 1?"}, {"role": "system", "content": "Be brief."}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}"
)
QWEN3 = CHATML.replace(
    "\n{{ m.content }}", "\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
)
DATED = "<|im_start|>{{ strftime_now('%d %b %Y') }}\n" + CHATML + BEGIN
LLAMA31 = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" + (
    "Today Date: {{ date_string }}\n" + CHATML + BEGIN
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tests/assets/quickstart/model")


def render(tokenizer, template, *messages, **settings):
    tokenizer.chat_template = template
    return Renderer(tokenizer, DataConfig(**settings)).render(messages or [USER], "f.jsonl, row 3")


def refusal(tokenizer, template, *messages, **settings):
    with pytest.raises(DataError) as caught:
        render(tokenizer, template, *messages, **settings)
    assert str(caught.value).startswith("f.jsonl, row 3: ")
    return str(caught.value)


@pytest.mark.parametrize("template", [CHATML + BEGIN, LLAMA2, QWEN3 + BEGIN, DATED, LLAMA31])
def test_templates_that_begin_the_answer(tokenizer, template):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = render(tokenizer, template)
    assert USER["content"] in text and text.endswith(("assistant\n", "[/INST]"))


@pytest.mark.parametrize(
    ("template", "header"),
    [
        (CHATML, "'<|im_start|>assistant\\n'"),
        (QWEN3, "'<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n'"),
        ("{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}", "'ASSISTANT: '"),
        ("{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n\n{% endfor %}", "'### assistant\\n'"),
    ],
)
def test_templates_that_ignore_add_generation_prompt(tokenizer, template, header):
    words = refusal(tokenizer, template)
    assert f"the chat template ignores add_generation_prompt: an answer would begin without {header}" in words


@pytest.mark.parametrize("template", [DATED, LLAMA31])
def test_a_template_that_asks_for_the_date_is_told_the_recipes(tokenizer, template):
    assert "26 Jul 2024\n" in render(tokenizer, template)
    assert "01 Mar 2025\n" in render(tokenizer, template, date="2025-03-01")
    today = datetime.date.today().strftime("%d %b %Y")
    assert today not in render(tokenizer, template)


def test_a_date_that_is_none_is_refused():
    with pytest.raises(RecipeError, match=r"data.date = '26 Jul 2024'"):
        load_config("launch/recipes/quickstart.toml", ["data.date=26 Jul 2024"])


NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}" + CHATML.removeprefix("{% for m in messages %}")
NO_SYSTEM = NO_SYSTEM.removesuffix("{% endfor %}") + "{% endif %}{% endfor %}" + BEGIN
LAST_ONLY = "<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n" + BEGIN
OWN_SYSTEM = "<|im_start|>system\nYou are Q.<|im_end|>\n" + NO_SYSTEM
CUT = CHATML.replace("{{ m.content }}", "{{ m.content[:5] }}") + BEGIN


@pytest.mark.parametrize(
    ("template", "messages", "role"),
    [
        (NO_SYSTEM, [SYSTEM, USER], "system"),
        (OWN_SYSTEM, [SYSTEM, USER], "system"),
        (LAST_ONLY, [SYSTEM, USER], "system"),
        (LAST_ONLY, [USER, {"role": "assistant", "content": "2"}, USER | {"content": "And 2 + 2?"}], "user"),
        (CUT, [USER], "user"),
        (NO_SYSTEM, [SYSTEM | {"content": "1"}, USER], "system"),
    ],
)
def test_a_template_that_leaves_a_message_out(tokenizer, template, messages, role):
    assert f"the chat template leaves the {role} message out: " in refusal(tokenizer, template, *messages)


def test_each_order_of_roles_is_looked_at(tokenizer):
    tokenizer.chat_template = CHATML + BEGIN.replace("if add", "if messages[0].role != 'system' and add")
    renderer = Renderer(tokenizer, DataConfig())
    renderer.render([USER], "f.jsonl, row 0")
    with pytest.raises(DataError, match="row 1: the chat template ignores add_generation_prompt"):
        renderer.render([SYSTEM, USER], "f.jsonl, row 1")


def test_messages_that_a_template_may_change(tokenizer):
    """Spaces at the ends, and the thoughts of earlier answers."""
    spaced = USER | {"content": "\n What is 1 + 1? \n"}
    assert "user\nWhat is 1 + 1?<" in render(tokenizer, CHATML.replace("m.content", "m.content | trim") + BEGIN, spaced)
    thought = {"role": "assistant", "content": "<think>hm</think>2"}
    without = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}") + BEGIN
    assert "hm" not in render(tokenizer, without, USER, thought, USER | {"content": "And 3?"})
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML + BEGIN
    assert "the chat template refuses the prompt: no system role; change its" in refusal(
        tokenizer, refuses, SYSTEM, USER
    )


@pytest.mark.parametrize("format", ["chat", "plain"])
@pytest.mark.parametrize("content", ["", "   ", "\n\t", "\u00a0", "\u3000"])
@pytest.mark.parametrize("before", [[], [SYSTEM]])
def test_an_empty_prompt_is_refused(tokenizer, format, content, before):
    words = refusal(tokenizer, CHATML + BEGIN, *before, USER | {"content": content}, prompt_format=format)
    assert words == "f.jsonl, row 3: the prompt is empty; write the question, or leave the row out"


def test_an_end_of_turn_that_ends_no_answer_is_said(tokenizer):
    with pytest.warns(UserWarning, match=r"ends an answer with '<\|endoftext\|>', which ends none here .*im_end"):
        render(tokenizer, CHATML.replace("<|im_end|>", "<|endoftext|>") + BEGIN)


def test_a_template_without_the_token_that_the_tokenizer_puts_first_is_said(tokenizer, tmp_path):
    from tokenizers import Tokenizer, processors

    tokenizer.save_pretrained(tmp_path)
    whole = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    whole.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", whole.token_to_id("<|endoftext|>"))]
    )
    from transformers import PreTrainedTokenizerFast

    named = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    PreTrainedTokenizerFast(tokenizer_object=whole, **named).save_pretrained(tmp_path)
    other = load_tokenizer(tmp_path)
    with pytest.warns(
        UserWarning, match=r"the chat template begins without '<\|endoftext\|>', which the tokenizer puts"
    ):
        render(other, CHATML + BEGIN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(other, "{{ bos_token }}" + CHATML + BEGIN)
