"""Rows in the layouts that are found in the wild, and rows that say nothing."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from megatron_nft.config import DataConfig
from megatron_nft.data.errors import DataError
from megatron_nft.data.prompts import messages_to_ask
from megatron_nft.data.rows import problem_of, read_problems

CHAT = [{"role": "user", "content": "1 + 1 ="}]
LONG = {"content": "Add. " * 60, "role": "user"}  # as tables are written by name
GOLD = {"reward_model": {"ground_truth": "2"}}


def user(content):
    return {"role": "user", "content": content}


def read(row, stem="file"):
    return problem_of(row, 3, "a/file.jsonl", stem)


def refusal(row):
    with pytest.raises(DataError) as caught:
        read(row)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "question", "gold", "source"),
    [
        ({"prompt": CHAT, **GOLD, "data_source": "s"}, "1 + 1 =", "2", "s"),
        ({"prompt": "1 + 1 =", **GOLD, "data_source": "s"}, "1 + 1 =", "2", "s"),
        ({"prompt": "1 + 1 =", "ground_truth": 2}, "1 + 1 =", "2", "file"),
        ({"question": "Apples?", "answer": "3 * 4 = 12\n#### 12"}, "Apples?", "12", "openai/gsm8k"),
        ({"question": "Apples?", "answer": "#### 12", "data_source": "mine"}, "Apples?", "12", "mine"),
        ({"problem": "Half?", "level": "1", "solution": r"It is $\boxed{\frac12}$."}, "Half?", r"\frac12", "file"),
        ({"problem": "Half?", "solution": r"So \boxed{3}.", "answer": "0.5"}, "Half?", "0.5", "file"),
        ({"question": "Roots?", "final_answer": ["2", "3"]}, "Roots?", '["2", "3"]', "file"),
        ({"question": "Roots?", "answer": r"\boxed{1} or \boxed{2}"}, "Roots?", r"\boxed{1} or \boxed{2}", "file"),
        ({"messages": CHAT, "answer": "2"}, "1 + 1 =", "2", "file"),
        ({"prompt": json.dumps(CHAT), "reward_model": '{"ground_truth": 2.0}'}, "1 + 1 =", "2", "file"),
        ({"prompt": str(CHAT), **GOLD}, "1 + 1 =", "2", "file"),
        ({"prompt": json.dumps([LONG]), **GOLD}, LONG["content"], "2", "file"),
        ({"prompt": str([LONG]), "reward_model": str(GOLD["reward_model"])}, LONG["content"], "2", "file"),
        ({"problem": "Why?", "solution": "Clearly."}, "Why?", None, "file"),
        ({"prompt": CHAT[0], **GOLD}, "1 + 1 =", "2", "file"),
        ({"prompt": [{**CHAT[0], "name": None, "tool_calls": None}], **GOLD}, "1 + 1 =", "2", "file"),
        ({"prompt": [user([{"type": "text", "text": "1 + "}, {"text": "1 ="}])], **GOLD}, "1 + 1 =", "2", "file"),
        ({"prompt": "[1, 2] has which length?", **GOLD}, "[1, 2] has which length?", "2", "file"),
        ({"prompt": '{"role": 1} is which content?', **GOLD}, '{"role": 1} is which content?', "2", "file"),
        ({"prompt": "x", "reward_model": None, "answer": "7"}, "x", "7", "file"),
        ({"prompt": "x", "reward_model": {"style": "rule"}, "answer": "7"}, "x", None, "file"),
        ({"prompt": None, "question": "x", "answer": None}, "x", None, "file"),
    ],
)  # fmt: skip
def test_layouts(row, question, gold, source):
    problem = read(row)
    assert [dict(m) for m in problem.messages] == [{"role": "user", "content": question}]
    assert (problem.ground_truth, problem.data_source, problem.number) == (gold, source, 3)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": "2"}, "no column prompt, question, problem, messages in answer. Needed: prompt"),
        ({"prompt": None, **GOLD}, "prompt is empty"),
        ({"prompt": "1 + 1 ="}, "no column reward_model, ground_truth, answer, final_answer, solution in prompt. "),
        ({"prompt": "  ", **GOLD}, "prompt is empty: its last message asks nothing"),
        ({"prompt": [{"role": "system", "content": "Add."}, user("")], **GOLD}, "prompt is empty"),
        ({"prompt": [*CHAT, {"role": "assistant", "content": "2"}], **GOLD}, "the last message of prompt is the assi"),
        ({"prompt": ["1 + 1"], **GOLD}, "message 0 of prompt is '1 + 1', not {role, content}"),
        ({"prompt": [{"role": "user"}], **GOLD}, "message 0 of prompt is"),
        ({"prompt": [user([{"type": "image", "image": b"?"}])], **GOLD}, "a part that is no text ('image')"),
        ({"prompt": "[{'role': 'user' 'content': 'x'} {'role'", **GOLD}, "looks like messages made text"),
        ({"prompt": 7, **GOLD}, "prompt is '7'"),
        ({"prompt": float("nan"), **GOLD}, "prompt is 'nan'"),
        ({"prompt": "x", "reward_model": "34"}, "reward_model is '34', not {ground_truth}"),
        ({"prompt": "x", "reward_model": ["34"]}, "reward_model is \"['34']\", not {ground_truth}"),
        ({"prompt": "x", "reward_model": {"ground_truth": {"a": 1}}}, "ground_truth is a dict"),
        ({"prompt": "x", "answer": "3\n#### x = 3"}, "does not end in a line #### NUMBER: '3\\n#### x = 3'; put"),
        ({"prompt": "x", "answer": "so 12 #### 12"}, "does not end in a line #### NUMBER"),
        ({"prompt": "x", "ground_truth": "['3' '4']"}, "a list made text that can't be read"),
        ({"prompt": "x", "reward_model": "{'ground_truth': ['3' '4']}"}, "reward_model is"),
        ({"prompt": "x", **GOLD, "extra_info": "{'a': 1"}, "extra_info is text, but neither JSON nor Python's"),
        ({"prompt": "x", **GOLD, "data_source": ["a"]}, "data_source is a list, not text"),
        ({"prompt": "x \ud83d", **GOLD}, r"it has '\ud83d', which is half of a character"),
        ({"prompt": "x", **GOLD, "extra_info": {"a": ["\udc00"]}}, "half of a character"),
    ],
)  # fmt: skip
def test_rows_that_say_nothing(row, words):
    assert words in refusal(row) and "a/file.jsonl, row 3" in refusal(row)


def test_system_prompt_and_suffix():
    config = DataConfig(system_prompt="Think.", prompt_suffix="\nBox it.")
    asked = messages_to_ask(read({"prompt": "1 + 1 =", **GOLD}).messages, config)
    assert asked == [{"role": "system", "content": "Think."}, {"role": "user", "content": "1 + 1 =\nBox it."}]
    own = [{"role": "system", "content": "Mine."}, *CHAT]
    assert messages_to_ask(own, config) == [own[0], {"role": "user", "content": "1 + 1 =\nBox it."}]
    talk = [*CHAT, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Sure?"}]
    assert messages_to_ask(talk, DataConfig(prompt_suffix="!")) == [*talk[:2], {"role": "user", "content": "Sure?!"}]
    assert messages_to_ask(talk, DataConfig()) == talk


def test_extra_info_is_plain():
    info = {"n": float("nan"), "tests": [{"x": 1, "y": None}], "raw": b"ab", 3: True}
    assert read({"prompt": "x", **GOLD, "extra_info": info}).extra_info == {
        "n": None, "tests": [{"x": 1, "y": None}], "raw": "ab", "3": True,
    }  # fmt: skip


def test_extra_info_made_text():
    for text in ('{"index": 3, "x": 0.5}', "{'index': 3, 'x': 0.5}"):
        assert read({"prompt": "x", **GOLD, "extra_info": text}).extra_info == {"index": 3, "x": 0.5}
    assert read({"prompt": "x", **GOLD, "extra_info": " "}).extra_info == {}


def test_the_example_of_the_documentation(tmp_path):
    text = Path("megatron_nft/data/README.md").read_text()
    (lines,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.jsonl").write_text(lines)
    first, second = read_problems(str(tmp_path / "mine.jsonl"))
    assert (first.ground_truth, first.data_source) == ("12", "openai/gsm8k")
    assert (second.ground_truth, second.data_source) == (r"\frac{5}{6}", "mine")
    (settings,) = re.findall(r"```toml\n\[data\]\n(.*?)```", text, re.DOTALL)
    config = DataConfig(**tomllib.loads(settings))
    asked = messages_to_ask(second.messages, config)
    assert [m["role"] for m in asked] == ["system", "user"]
    assert asked[-1]["content"].endswith("1}{3}$?\nPut the final answer into \\boxed{}.")
