"""Benchmark files: every problem once, repeats merged, duplicates refused."""

import json

import pytest

from megatron_nft.config import DataConfig
from megatron_nft.data.benchmarks import load_benchmarks
from megatron_nft.data.prompts import DataError, load_tokenizer

CONFIG = DataConfig(max_prompt_tokens=60)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tests/assets/quickstart/model")


def row(number, **changes):
    return {
        "data_source": "aime24",
        "prompt": [{"role": "user", "content": f"What is {number} + 1?"}],
        "reward_model": {"ground_truth": str(number + 1)},
        "extra_info": {"index": number, "split": "test"},
    } | changes


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_a_benchmark_is_a_file(tmp_path, tokenizer):
    files = [write(tmp_path / f"{name}.jsonl", map(row, range(count))) for name, count in (("aime24", 3), ("amc", 2))]
    first, second = load_benchmarks(files, tokenizer, CONFIG)
    assert [(b.name, b.data_source, len(b.prompts), b.repeats) for b in (first, second)] == [
        ("aime24", "aime24", 3, 1),
        ("amc", "aime24", 2, 1),
    ]
    assert [p.prompt_id for p in first.prompts] == ["aime24/0", "aime24/1", "aime24/2"]
    assert [p.ground_truth for p in first.prompts] == ["1", "2", "3"]
    (first,) = load_benchmarks(files[:1], tokenizer, CONFIG, max_prompts=2)
    assert len(first.prompts) == 2


@pytest.mark.parametrize("same_ids", [True, False])
def test_a_file_that_repeats_all_problems_is_merged(tmp_path, tokenizer, same_ids):
    rows = [row(n % 3) | ({} if same_ids else {"extra_info": {"index": n}}) for n in range(3 * 4)]
    (benchmark,) = load_benchmarks([write(tmp_path / "a.jsonl", rows)], tokenizer, CONFIG)
    assert ([p.prompt_id for p in benchmark.prompts], benchmark.repeats) == (["a/0", "a/1", "a/2"], 4)


@pytest.mark.parametrize("where", ["reward_model", "extra_info", "id", "none"])
@pytest.mark.parametrize("num_problems", [1, 2, 30])
def test_a_problem_is_one_wherever_its_rows_have_their_ids(tmp_path, tokenizer, where, num_problems):
    rows = []
    for n in range(num_problems * 32):
        one = row(n % num_problems, extra_info={"split": "test"})
        ids = {"reward_model": {"reward_model": one["reward_model"] | {"id": n}}, "id": {"id": n}}
        rows.append(one | ids.get(where, {"extra_info": {"index": n}} if where == "extra_info" else {}))
    (benchmark,) = load_benchmarks([write(tmp_path / "a.jsonl", rows)], tokenizer, CONFIG)
    assert (len(benchmark.prompts), benchmark.repeats) == (num_problems, 32)


def test_one_question_with_two_ground_truths_is_two_problems(tmp_path, tokenizer):
    rows = [row(0), row(0, reward_model={"ground_truth": "7"}, extra_info=None)] * 2
    (benchmark,) = load_benchmarks([write(tmp_path / "a.jsonl", rows)], tokenizer, CONFIG)
    assert ([p.ground_truth for p in benchmark.prompts], benchmark.repeats) == (["1", "7"], 2)


def test_duplicate_ids_are_refused(tmp_path, tokenizer):
    for rows in ([row(0), row(1), row(0)], [row(0), row(1), row(2) | {"extra_info": {"index": 0, "split": "test"}}]):
        with pytest.raises(DataError, match=r"rows 0 and 2 \(counted from 0\) have one id, extra_info.index = 0"):
            load_benchmarks([write(tmp_path / "a.jsonl", rows)], tokenizer, CONFIG)


def test_equal_ids_of_two_splits_or_no_ids_are_none(tmp_path, tokenizer):
    rows = [row(0), row(1) | {"extra_info": {"index": 0, "split": "validation"}}, row(2) | {"extra_info": None}, row(3)]
    (benchmark,) = load_benchmarks([write(tmp_path / "a.jsonl", rows)], tokenizer, CONFIG)
    assert len(benchmark.prompts) == 4


def test_long_prompts_are_counted(tmp_path, tokenizer):
    long = row(1) | {"prompt": [{"role": "user", "content": "one and " * 100}]}
    (benchmark,) = load_benchmarks([write(tmp_path / "a.jsonl", [row(0), long])], tokenizer, CONFIG)
    assert (len(benchmark.prompts), benchmark.num_too_long) == (1, 1)
    with pytest.raises(DataError, match=r"no prompt left of .*a.jsonl: 1 longer than data.max_prompt_tokens = 60"):
        load_benchmarks([write(tmp_path / "a.jsonl", [long])], tokenizer, CONFIG)


def test_two_files_of_one_name_are_refused(tmp_path, tokenizer):
    (tmp_path / "b").mkdir()
    files = [write(path / "a.jsonl", [row(0)]) for path in (tmp_path, tmp_path / "b")]
    with pytest.raises(DataError, match=r"2 data files are called a .*; rename one"):
        load_benchmarks(files, tokenizer, CONFIG)


def test_an_empty_file_is_refused(tmp_path, tokenizer):
    with pytest.raises(DataError):
        load_benchmarks([write(tmp_path / "a.jsonl", [])], tokenizer, CONFIG)
