"""Given answers: which rows are taken, what of them is learned, in which order, and which rows are none."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from megatron_nft.config import load_config
from megatron_nft.data.demonstrations import InOrder, load_demonstrations
from megatron_nft.data.errors import DataError
from megatron_nft.data.prompts import PromptStream

MODEL = "tests/assets/quickstart/model"


@pytest.fixture
def load(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def make(*rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        more = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        config = load_config("launch/quickstart/pupils.toml", [f"model.path={MODEL}", f'data.train=["{path}"]', *more])
        return load_demonstrations([str(path)], tokenizer, config), tokenizer

    return make


def test_answers_from_columns_and_from_messages(load):
    chat = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "1+1=2"}]
    given, tokenizer = load(
        {"prompt": "1+1", "response": "1+1=2"}, {"messages": chat}, {"problem": "1+1", "solution": "1+1=2"}
    )
    first = given.sequence(given.prompts[0], learns_prompt=False)
    asked = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(first.token_ids_T) == asked + "1+1=2" + tokenizer.eos_token
    assert first.num_prompt_tokens == len(tokenizer.encode(asked)) and first.verdict == 1
    for prompt in given.prompts[1:]:
        np.testing.assert_array_equal(given.sequence(prompt, learns_prompt=False).token_ids_T, first.token_ids_T)
    whole = given.sequence(given.prompts[0], learns_prompt=True)
    assert whole.num_prompt_tokens == 1 and len(whole.engine_logprobs_A) == len(first.token_ids_T) - 1


def test_long_ones_are_left_out_and_counted(load):
    row, long = {"prompt": "1+1", "response": "2"}, "1+" * 40
    given, _ = load(
        row,
        {**row, "prompt": long},
        {**row, "response": long},
        data__max_prompt_tokens=40,
        rollout__max_answer_tokens=40,
    )
    assert (len(given.prompts), given.num_too_long) == (1, 2)
    with pytest.raises(DataError, match=r"no row left of .*rows.jsonl: 1 longer than data.max_prompt_tokens = 40"):
        load({**row, "prompt": long}, data__max_prompt_tokens=40)


def test_blank_answers_are_left_out_and_counted_and_files_of_nothing_else_refused(load):
    row = {"prompt": "1+1", "response": "2"}
    said = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": " "}]
    _, tokenizer = load(row)
    blank = [{**row, "response": text} for text in ("", " \n", tokenizer.eos_token, f" {tokenizer.eos_token}")]
    given, _ = load(*blank, {"messages": said}, row, {**row, "response": "1+" * 40}, rollout__max_answer_tokens=40)
    assert (len(given.prompts), given.num_blank, given.num_too_long) == (1, 5, 1)
    assert given.prompts[0].prompt_id == "rows~0/5", "rows keep their numbers"
    with pytest.raises(DataError, match=r"no row left of \S+: 5 with a blank answer, from which nothing is learned;"):
        load(*blank, {"messages": said})
    with pytest.raises(DataError, match=r"rows.jsonl has no rows; write or fetch it again"):
        load()


def test_an_answer_has_one_end(load):
    _, tokenizer = load(row := {"prompt": "1+1", "response": "2"})
    given, _ = load(row, *[{**row, "response": f"2{tokenizer.eos_token}{space}"} for space in ("", "\n")])
    bare, *ended = (given.answers[prompt.prompt_id].tolist() for prompt in given.prompts)
    assert ended == [bare, bare] and bare.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    "row", [{"prompt": "1+1"}, {"prompt": "1+1", "response": 2}, {"prompt": "1+1", "answer": None}]
)
def test_a_row_without_an_answer_is_refused(load, row):
    with pytest.raises(DataError, match="row 0: no answer to learn; it stands in a column response, completion"):
        load(row)


def test_as_the_files_have_them_or_shuffled(load):
    given, _ = load(*[{"prompt": f"{n}+1", "response": str(n + 1)} for n in range(9)])
    in_order = InOrder(given.prompts, seed=1)
    assert in_order.take(4) == list(given.prompts[:4])
    state = in_order.state_dict()
    assert in_order.take(7) == [*given.prompts[4:], *given.prompts[:2]]
    again = InOrder(given.prompts, seed=1)
    again.load_state_dict(state)
    assert again.take(3) == list(given.prompts[4:7])
    shuffled = PromptStream(given.prompts, seed=1).take(9)
    assert shuffled != list(given.prompts) and set(map(id, shuffled)) == set(map(id, given.prompts))
