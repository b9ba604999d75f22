"""Files as they are found: packed, with marks, line ends and columns of all sorts, cut off, under another name."""

import bz2
import csv
import datetime
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_nft.data.errors import DataError
from megatron_nft.data.files import is_hub_name, kind_of, stem_of
from megatron_nft.data.rows import read_problems

ROWS = [{"question": f"{n} + 1 = ä", "answer": str(n + 1)} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(file, content=None):
    if content is not None:
        file.write_bytes(content)
    return [(p.number, p.messages[0]["content"], p.ground_truth) for p in read_problems(str(file))]


WANTED = [(n, f"{n} + 1 = ä", str(n + 1)) for n in range(3)]


def as_csv(delimiter=",") -> bytes:
    quoted = [[row["question"], row["answer"]] for row in ROWS]
    return "\r\n".join(
        delimiter.join(f'"{cell}"' for cell in row) for row in [["question", "answer"], *quoted]
    ).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", LINES.rstrip(b"\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("a.jsonl", b"\n\n" + LINES.replace(b"\n", b"\n \n")),
        ("a.ndjson", LINES),
        ("a.json", LINES),
        ("A.JSONL", LINES),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.jsonl", b"\xef\xbb\xbf\n " + json.dumps(ROWS, indent=2).encode()),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("a.jsonl.xz", lzma.compress(LINES)),
        ("a.csv", as_csv()),
        ("a.csv", b"\xef\xbb\xbf" + as_csv()),
        ("a.tsv", as_csv("\t")),
        ("a.csv.gz", gzip.compress(as_csv(), mtime=0)),
    ],
)
def test_the_same_rows_in_every_guise(tmp_path, name, content):
    assert read(tmp_path / name, content) == WANTED
    assert stem_of(str(tmp_path / name)).lower() == "a"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv", b"question,answer\n", "has no rows"),
        ("a.jsonl", LINES + b'{"question": ', "row 3 (line 4): it is no JSON: Expecting value"),
        ("a.jsonl", LINES + b"17\n", "row 3 (line 4): it is a int, not a table"),
        ("a.jsonl", b'{"question": "x", "answer": "1", "answer": "2"}', "'answer' is there twice"),
        ("a.jsonl", '{"question": "ä", "answer": "1"}'.encode("latin-1"), "it is no UTF-8"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "row 0 (line 1): it is no UTF-8"),
        ("a.jsonl", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"question": "x", "answer": ' + b"9" * 5000 + b"}", "row 0 (line 1): it is no JSON: Exceeds"),
        ("a.jsonl", gzip.compress(LINES, mtime=0), "is packed by gzip; give it the ending .gz"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "cannot be read: Compressed file ended"),
        ("a.jsonl.gz", LINES, "cannot be read: Not a gzipped file"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.jsonl", b"PAR1....", "is parquet, whatever its name says"),
        ("a.json", b'{"data": []}', "row 0: no column prompt, question, problem, messages in data"),
        ("a.csv", b"question,answer\nx\n", "row 0: it has not as many fields as the first line, 2"),
        ("a.csv", b"question,answer\nx,1,2\n", "row 0: it has not as many fields"),
        ("a.csv", b'question,answer\n"x,1\n', "row 0: it can't be read: unexpected end of data"),
        ("a.csv", b"answer,question,answer\n1,x,2\n", "has the column 'answer' twice"),
        ("a.parquet", b"PAR1 and no more", "cannot be read: "),
        ("a.txt", b"x", "unknown kind of file"),
        ("a.parquet.gz", b"x", "unknown kind of file"),
    ],
)
def test_what_can_not_be_read_is_said_in_a_line(tmp_path, name, content, words):
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, content)
    assert words in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(DataError, match="is a folder; name the files in it"):
        read(tmp_path)
    with pytest.raises(DataError, match="no data file"):
        read(tmp_path / "none.jsonl")
    assert kind_of("someone/math-7.5k") is None


def test_a_row_of_many_megabytes(tmp_path):
    row = {"question": "x" * 5_000_000, "answer": "1"}
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    for found in (read(tmp_path / "a.csv"), read(tmp_path / "a.jsonl", json.dumps(row).encode())):
        assert [(len(question), gold) for _, question, gold in found] == [(5_000_000, "1")]


def columns(tmp_path, gold, **others):
    table = pa.table({"prompt": pa.array(["x"] * len(gold)), "ground_truth": gold, **others})
    pq.write_table(table, tmp_path / "a.parquet")
    return [p.ground_truth for p in read_problems(str(tmp_path / "a.parquet"))]


@pytest.mark.parametrize(
    ("gold", "texts"),
    [
        (pa.array([34.0, 0.5, None, float("nan")]), ["34", "0.5", None, None]),
        (pa.array([0.1, 1e10], pa.float32()), ["0.1", "10000000000"]),
        (pa.array([1, 2**63 - 1]), ["1", "9223372036854775807"]),
        (pa.array([datetime.date(2021, 3, 5)]), ["2021-03-05"]),
        (pa.array([datetime.datetime(2021, 3, 5)], pa.timestamp("ms")), ["2021-03-05"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([b"34"]), ["34"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.array([["1", "2"], ["3"], []]), ['["1", "2"]', "3", None]),
        (pa.array([[0.1, 0.1]], pa.list_(pa.float32())), ["0.1"]),
        (pa.array([[0.1, 0.1]], pa.list_view(pa.float32())), ["0.1"]),
        (pa.array([0.1, 34], pa.float32()).dictionary_encode(), ["0.1", "34"]),
    ],
)
def test_columns_of_parquet(tmp_path, gold, texts):
    assert columns(tmp_path, gold) == texts


def test_nested_columns_of_parquet(tmp_path):
    table = pa.table(
        {
            "prompt": pa.array([[{"role": "user", "content": "x", "name": None}]]),
            "reward_model": pa.array([{"ground_truth": 0.1}], pa.struct([("ground_truth", pa.float32())])),
            "extra_info": pa.array([[("index", 7)]], pa.map_(pa.string(), pa.int64())),
            "image": pa.array([b"\xff"]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (problem,) = read_problems(str(tmp_path / "a.parquet"))
    assert problem.messages == ({"role": "user", "content": "x"},)
    assert (problem.ground_truth, problem.extra_info) == ("0.1", {"index": 7})


def test_a_name_on_the_hub(monkeypatch):
    """As datasets gives it, but for the download."""
    import datasets

    rows = [{"question": "x", "answer": 34.0, "other": [1]}, {"question": "y", "answer": 0.5, "other": None}]
    splits = datasets.DatasetDict(test=datasets.Dataset.from_list(rows), train=datasets.Dataset.from_list(rows[:1]))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    assert [(p.ground_truth, p.data_source) for p in read_problems("someone/math-7.5k")] == [("34", "math-7.5k")]
    splits.pop("train")
    assert [p.ground_truth for p in read_problems("someone/math-7.5k")] == ["34", "0.5"]
    splits["dev"] = splits["test"]
    with pytest.raises(DataError, match="has the splits test, dev and no train"):
        list(read_problems("someone/math-7.5k"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: (_ for _ in ()).throw(OSError("no\nnetwork")))
    with pytest.raises(DataError, match="someone/math cannot be read: no network; offline, download it first"):
        list(read_problems("someone/math"))


def test_a_file_that_is_missing_from_a_folder_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="no data file data/train"):
        list(read_problems("data/train"))
    assert is_hub_name("owner/name.v2") and not is_hub_name("owner/name.jsonl") and not is_hub_name("a/b/c")


def test_a_broken_row_of_parquet_is_named(tmp_path):
    bad = pa.array([b"fine", b"\xff"]).cast(pa.binary()).view(pa.string())
    with pytest.raises(DataError, match=r"a.parquet, row 1: it can't be read: .*utf-8"):
        columns(tmp_path, bad)
    with pytest.raises(DataError, match=r"has the column ground_truth twice"):
        pq.write_table(pa.Table.from_arrays([bad, bad], ["ground_truth"] * 2), tmp_path / "a.parquet")
        list(read_problems(str(tmp_path / "a.parquet")))
