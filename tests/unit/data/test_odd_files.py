"""Odd data files, drawn: what was meant comes out, or a line says why not. Never a traceback, never another question.

The oracle is what was put in: the very question, and the very value by exact arithmetic; it knows nothing of layouts.
"""

import csv
import datetime
import gzip
import io
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from megatron_nft.config import DataConfig
from megatron_nft.data.errors import DataError
from megatron_nft.data.prompts import load_prompts

ODD_TEXTS = [
    "\ufeff", "\r\n", "\u2028", "\x00", '"', ",", "\t", "\\", "{", "[", "#### 5", r"\boxed{2}", "'role'", "None",
    "1e5", "034", "ä", "😀", "\x85", "\x0b", "", " ",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=6)), max_size=4).map("".join)
questions_asked = st.one_of(texts, *[texts.map(lambda text: f"{text}1 + 1 =")] * 9)
numbers = {
    "int": st.integers(-(2**62), 2**62),
    "large int": st.integers(-(10**30), 10**30),
    "float": st.floats(allow_infinity=False),
    "float32": st.floats(allow_infinity=False, width=32),
}
golds = {
    **numbers,
    "text": texts,
    "bool": st.booleans(),
    "date": st.dates(datetime.date(1, 1, 1)),
    "list": st.lists(st.one_of(st.sampled_from(["1", "x + 1", "", "[1, 2]"]), st.text(max_size=3)), max_size=3),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9),
}
LAYOUTS = ("verl", "verl", "plain", "plain", "question", "messages as text", "system", "solution", "gsm8k")
KINDS = (".jsonl", ".json", ".csv", ".parquet", ".parquet", ".jsonl.gz")
DAMAGES = ("cut off", "a byte", "a key", "a scalar", "a list")


@st.composite
def files(draw):
    """(name, bytes, questions, gold values, damaged?)"""
    kind, layout, damage = draw(st.sampled_from(KINDS)), draw(st.sampled_from(LAYOUTS)), None
    of = draw(st.sampled_from(["int"] if layout in ("solution", "gsm8k") else sorted(golds)))
    values = draw(st.lists(st.one_of(st.none(), golds[of]) if layout == "verl" else golds[of], min_size=1, max_size=4))
    questions = draw(st.lists(questions_asked, min_size=len(values), max_size=len(values)))
    rows = [_row(layout, q, _written(value, kind, of)) for q, value in zip(questions, values, strict=True)]
    if kind in (".jsonl", ".json") and draw(st.integers(0, 3)) == 3:
        damage = draw(st.sampled_from(DAMAGES))
        rows = _damaged_rows(rows, damage, draw(st.integers(0, len(rows) - 1)))
    content = _bytes(rows, kind, of, draw(st.sampled_from(["\n", "\r\n"])), draw(st.booleans()))
    if damage in ("cut off", "a byte"):
        content = _damaged_bytes(content, damage, draw(st.integers(0, len(content) - 1)))
    return f"odd{kind}", content, [_asked(layout, q) for q in questions], values, damage, of, layout


def _row(layout, question, gold):
    user = {"role": "user", "content": question}
    return {
        "verl": {"prompt": [user], "reward_model": {"ground_truth": gold, "style": "rule"}, "data_source": "s"},
        "plain": {"prompt": question, "ground_truth": gold, "other": 1},
        "question": {"question": question, "answer": gold},
        "messages as text": {"prompt": json.dumps([user]), "ground_truth": gold},
        "system": {"prompt": [{"role": "system", "content": "Add."}, user], "ground_truth": gold},
        "solution": {"problem": question, "solution": f"First \\boxed{{0}}, then $\\boxed{{{gold}}}$."},
        "gsm8k": {"question": question, "answer": f"<<1+1=2>>\n#### {gold}"},
    }[layout]


def _asked(layout, question):
    return f"Add.\n{question}" if layout == "system" else question


def _written(value, kind, of):
    """As the file has it: JSON and csv have fewer types."""
    if kind == ".parquet" or value is None:
        return value
    if isinstance(value, datetime.date):
        return value.isoformat()
    if kind == ".csv":
        return json.dumps(value) if isinstance(value, list | bool) else str(value)
    if isinstance(value, Decimal):
        return float(value)
    return float(str(np.float32(value))) if of == "float32" else value


def _bytes(rows, kind, of, end, mark):
    if kind == ".parquet":
        buffer = io.BytesIO()
        try:
            table = pa.Table.from_pylist(rows)
        except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
            assume(False)
        for column in ("ground_truth", "answer"):
            if of == "float32" and column in table.column_names:
                place = table.column_names.index(column)
                table = table.set_column(place, column, table[column].cast(pa.float32()))
        pq.write_table(table, buffer)
        return buffer.getvalue()
    if kind == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(
            {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()} for row in rows
        )
        content = text.getvalue().encode()
    elif kind == ".json":
        content = json.dumps(rows, indent=1).encode()
    else:
        content = "".join(json.dumps(row, ensure_ascii=mark) + end for row in rows).encode()
    content = b"\xef\xbb\xbf" + content if mark else content
    return gzip.compress(content, mtime=0) if kind.endswith(".gz") else content


def _damaged_rows(rows, damage, place):
    broken = {"a key": dict(list(rows[place].items())[1:]), "a scalar": 17, "a list": [rows[place]]}
    return [*rows[:place], broken.get(damage, rows[place]), *rows[place + 1 :]]


def _damaged_bytes(content, damage, place):
    return content[:place] if damage == "cut off" else content[:place] + b"\xff" + content[place + 1 :]


def is_missing(value) -> bool:
    if isinstance(value, list):
        return all(is_missing(one) for one in value)
    if isinstance(value, str):
        return value.strip() in ("", "nan", "<NA>", "NaT")
    return value is None or (isinstance(value, float) and math.isnan(value))


def assert_same(text, value, of, kind, layout):
    """The ground truth is that value, written as a person would."""
    if isinstance(value, list):
        wanted = list(dict.fromkeys(one for one in value if not is_missing(one)))
        assert (json.loads(text) if len(wanted) > 1 else [text]) == wanted
    elif isinstance(value, bool):
        assert text == str(value).lower()
    elif isinstance(value, datetime.date):
        assert text == value.isoformat()
    elif isinstance(value, str) or kind == ".csv":
        assert text == str(value)
    else:
        narrow = of == "float32" and (kind != ".parquet" or layout != "verl")
        exact = str(np.float32(value)) if narrow else repr(value) if isinstance(value, float) else str(value)
        assert Fraction(text) == Fraction(exact)
        assert "e" not in text.lower() and not (("." in text) and text.endswith(("0", ".")))


def check(tmp_path: Path, tokenizer, drawn) -> None:
    name, content, questions, values, damage, of, layout = drawn
    assume("<bos>" not in "".join(questions))
    assume(not any('[{"role"' in q for q in questions) and not any(isinstance(v, str) and "####" in v for v in values))
    assume(not any(isinstance(v, str) and v.strip().startswith(("[", "{")) for v in values))
    (file := tmp_path / name).write_bytes(content)
    config = DataConfig(train=[str(file)], prompt_format="plain", missing_answer="skip", max_prompt_tokens=10_000)
    try:
        prompts = load_prompts([str(file)], tokenizer, config).prompts
    except DataError as error:
        assert "\n" not in str(error) and "odd." in str(error)
        reasons = any(not q.removeprefix("Add.\n").strip() for q in questions) or all(map(is_missing, values))
        assert damage or reasons, error
        return
    if damage:
        return  # what a flipped byte meant is not known
    kind = Path(name).suffix
    assert all(q.removeprefix("Add.\n").strip() for q, v in zip(questions, values, strict=True))
    wanted = [(q, v, n) for n, (q, v) in enumerate(zip(questions, values, strict=True)) if not is_missing(v)]
    assert [p.prompt_id for p in prompts] == [f"odd/{n}" for _, _, n in wanted]
    for prompt, (question, value, _) in zip(prompts, wanted, strict=True):
        assert prompt.text == question
        assert tokenizer.decode(prompt.token_ids_P[1:]) == question
        assert_same(prompt.ground_truth, value, of, kind, layout)
        assert prompt.data_source == {"verl": "s", "gsm8k": "openai/gsm8k"}.get(layout, "odd")


def draws(count):
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
    )


@given(drawn=files())
@draws(60)
def test_odd_files(tmp_path, byte_tokenizer, drawn):
    check(tmp_path, byte_tokenizer, drawn)


@pytest.mark.night("500 odd files in place of 60")
@given(drawn=files())
@draws(500)
def test_many_odd_files(tmp_path, byte_tokenizer, drawn):
    check(tmp_path, byte_tokenizer, drawn)
