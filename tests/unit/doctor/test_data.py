"""A recipe's data in the doctor: every row, in the run's words, by a process of its own; the reader as a command."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_nft.config import DataConfig
from megatron_nft.data.check import check_files
from megatron_nft.doctor.data import DataCheck
from megatron_nft.doctor.machine import Machine

HELD_OUT, MODEL = Path("tests/assets/quickstart/held_out.parquet"), Path("tests/assets/quickstart/model")


def found(*files, **settings):
    data = DataConfig(train=[str(file) for file in files], **settings)
    return list(DataCheck(data, MODEL).findings(Machine.this_one()))


def test_files_that_a_run_would_refuse(tmp_path):
    """All in one process; those that are right beside them."""
    lines = {
        "gold": (['{"question": "x", "answer": "1"}', '{"question": "y", "answer": NaN}'], "row 1 (counted from 0): "),
        "column": (['{"frage": "x"}'], "row 0: no column prompt, question"),
        "empty": (['{"question": " ", "answer": "1"}'], "row 0: question is empty"),
        "cut": (['{"question": "x", "answer": '], "row 0 (line 1): it is no JSON"),
        "nothing": ([], "has no rows"),
        "right": (['{"question": "x", "answer": "1"}'] * 3, ""),
    }  # fmt: skip
    files = {name: tmp_path / f"{name}.jsonl" for name in lines}
    for name, file in files.items():
        file.write_text("\n".join(lines[name][0]))
    findings = found(*files.values(), HELD_OUT)
    for finding, (name, file) in zip(findings, files.items(), strict=False):
        assert (finding.status, finding.check) == ("FAIL" if lines[name][1] else "ok", "data")
        assert lines[name][1] in finding.reason and str(file) in finding.value
    assert [finding.value for finding in findings[-2:]] == [f"{files['right']}: 3 rows", f"{HELD_OUT}: 256 rows"]
    (skipped,) = found(files["gold"], missing_answer="skip")
    assert skipped.value.endswith("gold.jsonl: 2 rows, 1 without a ground truth")


def test_held_out_files_are_looked_at_as_benchmarks(tmp_path):
    """Results go by a file's name, and by a row's id; repeats of a whole file are one problem each."""
    row = '{"prompt": "%s", "answer": "1", "extra_info": {"index": 7}}'
    for name, questions in (("one/test", "ab"), ("two/test", "c"), ("same", "ddd")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(row % question for question in questions))
    one, two, same = (str(tmp_path / f"{name}.jsonl") for name in ("one/test", "two/test", "same"))
    train, *others = found(HELD_OUT, held_out=[one, two, same])
    assert train.status == "ok" and "2 data files are called test" in others[0].reason
    assert [finding.status for finding in others] == ["FAIL", "FAIL", "ok"]
    assert "rows 0 and 1 (counted from 0) have one id" in found(two, held_out=[one])[1].reason
    assert [finding.status for finding in found(one)] == ["ok"], "to train on"


def test_prompts_that_are_too_long(tmp_path):
    rows = ['{"question": "%s", "answer": "1"}' % ("a b " * 50 * n) for n in (0, 1, 2)]
    (tmp_path / "a.jsonl").write_text("\n".join(row.replace('"question": ""', '"question": "a"') for row in rows))
    (tmp_path / "b.jsonl").write_text("\n".join(rows[1:]))
    some, none = found(tmp_path / "a.jsonl", tmp_path / "b.jsonl", max_prompt_tokens=10)
    assert some.value.endswith("a.jsonl: 3 rows, 2 too long")
    assert none.reason.endswith("b.jsonl: all of its 2 prompts are longer than 10 tokens")
    assert [finding.status for finding in found(tmp_path / "b.jsonl", max_prompt_tokens=1000)] == ["ok"]


def test_large_files_are_looked_at_for_a_while(tmp_path):
    row = '{"question": "1 + 1 =", "answer": "2"}\n'
    (tmp_path / "a.jsonl").write_text(row * 1000 + '{"frage": 1}\n')
    (short,) = check_files([str(tmp_path / "a.jsonl")], False, budget_s=0.0)
    assert (short.rows, short.is_whole, short.error) == (200, False, "")
    (whole,) = check_files([str(tmp_path / "a.jsonl")], False, budget_s=float("inf"))
    assert "row 1000: no column" in whole.error


@pytest.mark.parametrize(("content", "words"), [("raise ImportError('libarrow.so: none')", "libarrow.so: none")])
def test_a_broken_library_is_said(tmp_path, monkeypatch, content, words):
    (tmp_path / "pyarrow.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = found(HELD_OUT)
    assert finding.status == "FAIL" and words in finding.reason


def test_the_command(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Apples?", "answer": "so\\n#### 12"}')
    command = [sys.executable, "-m", "megatron_nft.data.check", str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (
        done.stdout == f"ok   {tmp_path}/a.jsonl: 1 rows (openai/gsm8k 1); 'Apples?' -> '12'\n" and not done.returncode
    )
    done = subprocess.run([*command, "none.csv"], capture_output=True, text=True, timeout=100)
    assert "FAIL no data file none.csv" in done.stdout and done.returncode == 2
