import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import normalizers

from megatron_nft.config import DataConfig
from megatron_nft.data.prompts import DataError, PromptStream, load_prompts, load_tokenizer
from tests.unit.data.conftest import BOS, TEMPLATE

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    return byte_tokenizer


def config(**settings) -> DataConfig:
    return DataConfig(train=["unused"], **settings)


def row(question: str, gold: str | None = "2", source: str = "sums") -> dict:
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": gold},
        "extra_info": {"index": 7},
    }


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_chat_prompts_are_rendered_and_tokenized(tmp_path, tokenizer, suffix):
    file = write(tmp_path / f"sums.{suffix}", [row("1+1="), row("2+3=", "5", "more")])
    loaded = load_prompts([file], tokenizer, config())
    first, second = loaded.prompts
    assert first.text == "<user>1+1=<answer>"
    assert first.token_ids_P.dtype == np.int32
    assert tokenizer.decode(first.token_ids_P) == first.text, "the template's tokens and no others"
    assert (first.prompt_id, first.ground_truth, first.data_source) == ("sums/0", "2", "sums")
    assert (second.prompt_id, second.ground_truth, second.data_source) == ("sums/1", "5", "more")


def test_plain_prompts_join_the_contents_and_get_the_tokenizers_special_tokens(tmp_path, tokenizer):
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]
    file = write(tmp_path / "sums.parquet", [{**row(""), "prompt": messages}])
    (prompt,) = load_prompts([file], tokenizer, config(prompt_format="plain")).prompts
    assert prompt.text == "Add.\n1+1="
    assert prompt.token_ids_P[0] == BOS
    assert len(prompt.token_ids_P) == 1 + len(prompt.text)


def test_long_prompts_and_rows_without_an_answer_are_counted(tmp_path, tokenizer):
    rows = [row("1+1="), row("1" * 30), row("3+3=", None), row("4+4=", " "), row("5+5=", "10"), row("12+1=")]
    file = write(tmp_path / "sums.parquet", rows)
    loaded = load_prompts([file], tokenizer, config(max_prompt_tokens=18, missing_answer="skip"))
    assert [p.prompt_id for p in loaded.prompts] == ["sums/0", "sums/4"]
    assert [len(p.token_ids_P) for p in loaded.prompts] == [18, 18] and loaded.num_too_long == 2, "18 are allowed"
    assert loaded.num_without_answer == 2


def test_a_prompt_without_a_token_is_refused(tmp_path):
    """What the engine would refuse in the middle of sampling: "The decoder prompt cannot be empty"."""
    none = load_tokenizer(REPOSITORY / "tests/assets/quickstart/model")
    none.backend_tokenizer.normalizer = normalizers.Replace("z", "")
    none.name_or_path = str(tmp_path)  # the folder's own file would tell them apart
    file = write(tmp_path / "sums.jsonl", [row("1+1="), row("zzz")])
    with pytest.raises(DataError, match=r"sums.jsonl, row 1: the tokenizer makes no token of the prompt 'zzz'"):
        load_prompts([file], none, config(prompt_format="plain"))


def test_ids_are_unique_over_files_of_the_same_name(tmp_path, tokenizer):
    (tmp_path / "other").mkdir()
    files = [write(folder / "sums.parquet", [row("1+1=")]) for folder in (tmp_path, tmp_path / "other")]
    loaded = load_prompts([*files, files[0]], tokenizer, config())
    assert [p.prompt_id for p in loaded.prompts] == ["sums/0", "sums~2/0", "sums~3/0"]


def test_extra_info_is_kept_as_json_has_it(tmp_path, tokenizer):
    day = {"tests": [{"input": "1", "output": "2"}], "day": datetime(2026, 1, 2), "limit": None, "share": 0.5}
    tables = write(tmp_path / "a.parquet", [{**row("1+1="), "extra_info": info} for info in (day, None)])
    texts = [{**row("1+1="), "extra_info": info} for info in ('{"n": 1}', '{"of": "another kind"}', "")]
    without = {name: value for name, value in row("1+1=").items() if name != "extra_info"}
    loaded = load_prompts(
        [tables, write(tmp_path / "b.jsonl", texts), write(tmp_path / "c.jsonl", [without])], tokenizer, config()
    )
    first = {**day, "day": "2026-01-02 00:00:00"}
    assert [p.extra_info for p in loaded.prompts] == [first, {}, {"n": 1}, {"of": "another kind"}, {}, {}]
    assert json.loads(json.dumps(loaded.prompts[0].extra_info)) == first


def test_numbers_as_ground_truths_become_text(tmp_path, tokenizer):
    file = write(tmp_path / "sums.jsonl", [row("1+1=", 2), row("1-1=", 0)])
    assert [p.ground_truth for p in load_prompts([file], tokenizer, config()).prompts] == ["2", "0"]


@pytest.mark.parametrize(
    ("name", "rows", "settings", "message"),
    [
        ("a.parquet", [{"frage": "1+1="}], {}, "a.parquet has none of the columns prompt, question, problem, messages"),
        ("a.jsonl", [{"frage": "1+1="}], {}, "row 0: no column prompt, question, problem, messages in frage. Needed: "),
        ("a.parquet", [row("1+1="), row("2+2=", None)], {}, "row 1 (counted from 0): no ground truth; add it"),
        (
            "a.parquet",
            [row("1+1=")],
            {"max_prompt_tokens": 3},
            "1 longer than data.max_prompt_tokens = 3, 0 without an",
        ),
        ("a.jsonl", [{**row(""), "prompt": []}], {}, "row 0: prompt is '[]'"),
        ("a.jsonl", [{**row("?"), "reward_model": "2"}], {}, "row 0: reward_model is '2', not {ground_truth}"),
        ("a.jsonl", [row("1+1=", {"x": 2})], {}, "row 0: ground_truth is a dict, not text, a number, a date"),
        ("a.jsonl", [{**row("?"), "extra_info": [1]}], {}, "row 0: extra_info is a list, not a table. Needed: prompt"),
        ("a.jsonl", [{**row("?"), "extra_info": "{1"}], {}, "row 0: extra_info is text, but neither JSON nor"),
        (
            "a.jsonl",
            [{**row(""), "prompt": [{"role": "tool", "content": "?"}]}],
            {},
            "row 0: the chat template refuses the prompt: no tools here",
        ),
    ],
)
def test_unfit_data_is_refused_with_place_and_remedy(tmp_path, tokenizer, name, rows, settings, message):
    file = write(tmp_path / name, rows)
    with pytest.raises(DataError) as error:
        load_prompts([file], tokenizer, config(**settings))
    assert message in str(error.value)
    assert file in str(error.value)


def test_missing_broken_and_unknown_files_are_refused(tmp_path, tokenizer):
    (tmp_path / "broken.parquet").write_text("not parquet")
    (tmp_path / "broken.jsonl").write_text('{"prompt": ')
    (tmp_path / "a.txt").write_text("a,b")
    for name, message in (
        ("none.parquet", "no data file"),
        ("a.txt", "unknown kind of file; data comes as .parquet"),
        ("broken.parquet", "broken.parquet cannot be read: "),
        ("broken.jsonl", r"broken.jsonl, row 0 \(line 1\): it is no JSON: "),
    ):
        with pytest.raises(DataError, match=message):
            load_prompts([str(tmp_path / name)], tokenizer, config())


def test_local_files_need_no_writable_home_and_show_no_progress_bar(tmp_path):
    file = write(tmp_path / "sums.parquet", [row("1+1=")])
    code = f"from megatron_nft.data.rows import read_problems; print(next(read_problems({file!r})).data_source)"
    environment = {**os.environ, "HOME": "/proc/none", "HF_HOME": "/proc/none", "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )
    assert finished.stdout == "sums\n", finished.stderr
    assert finished.stderr == ""


def test_a_tokenizer_without_a_chat_template_does_for_plain_prompts_only(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "model")
    bare = load_tokenizer(tmp_path / "model")
    assert bare.chat_template == TEMPLATE
    bare.chat_template = None
    file = write(tmp_path / "sums.parquet", [row("1+1=")])
    assert load_prompts([file], bare, config(prompt_format="plain")).prompts
    with pytest.raises(DataError, match=r'has no chat template; set data.prompt_format = "plain"'):
        load_prompts([file], bare, config())


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*none"):
        load_tokenizer(tmp_path / "none")
    # transformers itself makes up an empty tokenizer here.
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(DataError, match=r"no tokenizer in .* \(none of tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="does not load"):
        load_tokenizer(tmp_path)


@pytest.fixture
def prompts(tmp_path, tokenizer):
    return load_prompts(
        [write(tmp_path / "sums.parquet", [row(f"{n}+{n}=") for n in range(10)])], tokenizer, config()
    ).prompts


def ids(prompts) -> list[str]:
    return [p.prompt_id for p in prompts]


def test_an_epoch_holds_every_prompt_once_and_each_has_its_own_order(prompts):
    stream = PromptStream(prompts, seed=1)
    first, second = ids(stream.take(10)), ids(stream.take(10))
    assert sorted(first) == sorted(second) == ids(prompts)
    assert (
        len({tuple(first), tuple(second), tuple(ids(PromptStream(prompts, seed=2).take(10))), tuple(ids(prompts))}) == 4
    )
    assert stream.epoch == 1
    assert len(stream.take(35)) == 35
    assert stream.epoch == 5


def test_the_order_is_the_same_on_every_machine(prompts):
    assert ids(PromptStream(prompts, seed=1).take(4)) == ["sums/2", "sums/9", "sums/8", "sums/3"]


@pytest.mark.parametrize("num_taken", [0, 3, 10, 27])
def test_a_resumed_stream_gives_what_an_uninterrupted_one_gives(prompts, num_taken):
    stream = PromptStream(prompts, seed=5)
    stream.take(num_taken)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = PromptStream(prompts, seed=5)
    resumed.load_state_dict(state)
    assert resumed.epoch == stream.epoch
    assert [ids(resumed.take(n)) for n in (4, 9, 1)] == [ids(stream.take(n)) for n in (4, 9, 1)]


def test_a_position_in_other_data_is_refused(prompts):
    state = PromptStream(prompts, seed=5).state_dict()
    with pytest.raises(DataError, match=r"is of other prompts \(10 then, 9 now\): the files, their order, the tok"):
        PromptStream(prompts[1:], seed=5).load_state_dict(state)
    with pytest.raises(DataError, match=r"order has seed 5, this run has 6; set run.seed = 5"):
        PromptStream(prompts, seed=6).load_state_dict(state)
    with pytest.raises(DataError, match="at least one prompt"):
        PromptStream([], seed=5)
