"""A row -> a Problem: what is asked, what is right, by which source. Called by prompts.py, benchmarks.py and check.py.

Two layouts are taken, and what lies between them (README.md): DAPO's and verl's, of which the question is a list of
messages and the ground truth stands in reward_model; and question or problem beside answer or solution, as GSM8K and
MATH have it. Nothing is guessed: a row that says neither is refused by its number.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from megatron_nft.data.errors import DataError
from megatron_nft.data.files import Row, no_rows, read_rows, stem_of
from megatron_nft.data.ground_truth import MARK, NoGroundTruth, ground_truth_of, gsm8k_number, last_box
from megatron_nft.data.made_text import value_in

QUESTIONS = ("prompt", "question", "problem", "messages")
"""Columns that what is asked may stand in; the first that a row has counts."""
ANSWERS = ("reward_model", "ground_truth", "answer", "final_answer", "solution")
"""Columns that what is right may stand in; the first that a row has counts."""
COLUMNS = (*QUESTIONS, *ANSWERS, "data_source", "extra_info")
GSM8K = "openai/gsm8k"
_MESSAGE_FIRST = re.compile(r"""\s*\[?\s*\{\s*["'](?:role|content)["']\s*:""")
"""How messages made text begin; a long content may stand before the role."""
SCHEMA = (
    "prompt, question or problem (text, or a list of {role, content} messages); reward_model ({ground_truth}), "
    "ground_truth, answer or solution (which ends in #### or \\boxed{}); data_source (text), or else the file's name; "
    "extra_info (a table) is for graders of one's own, other columns are ignored"
)

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A row, read."""

    number: int  # of the row, from 0
    messages: tuple[Message, ...]  # {role, content}, and what else a chat template may want
    ground_truth: str | None  # None: the row has none
    data_source: str
    extra_info: dict[str, Any]


def read_problems(file: str) -> Iterator[Problem]:
    """The rows of a file or of a hub name, read.

    Raises:
        DataError: a file or a row is not what it should be, or there is no row.
    """
    number, stem = -1, stem_of(file)
    for number, row in read_rows(file, COLUMNS):
        yield problem_of(row, number, file, stem)
    if number < 0:
        raise no_rows(file)


def problem_of(row: Row, number: int, file: str, stem: str) -> Problem:
    """A row of a file, read.

    Args:
        stem: the data source of rows that name none.

    Raises:
        DataError: the row is not what it should be.
    """
    where = f"{file}, row {number}"
    question = next((name for name in QUESTIONS if row.get(name) is not None), None)
    if question is None:
        there = [name for name in QUESTIONS if name in row]
        what = f"{there[0]} is empty" if there else f"no column {', '.join(QUESTIONS)} in {', '.join(map(str, row))}"
        raise DataError(f"{where}: {what}. Needed: {SCHEMA}")
    messages = _messages(row[question], question, where)
    gold, is_gsm8k = _gold(row, where)
    source = row.get("data_source")
    if not isinstance(source, str | None):
        raise DataError(f"{where}: data_source is a {type(source).__name__}, not text. Needed: {SCHEMA}")
    problem = Problem(
        number=number,
        messages=messages,
        ground_truth=gold,
        data_source=source or (GSM8K if is_gsm8k else stem),
        extra_info=_extra_info(row.get("extra_info"), where),
    )
    _check_characters(problem, where)
    return problem


def messages_of(value: Any, name: str, where: str) -> tuple[Message, ...]:
    """A column's messages, whoever speaks last; a text is the user's.

    Raises:
        DataError: it is neither.
    """
    messages = _parsed(value, where, name) if isinstance(value, str) else value
    messages = [messages] if isinstance(messages, dict) else messages
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: {name} is {str(value)[:80]!r}. Needed: {SCHEMA}")
    return tuple(_message(message, f"{where}: message {place} of {name}") for place, message in enumerate(messages))


def _messages(value: Any, name: str, where: str) -> tuple[Message, ...]:
    cleaned = messages_of(value, name, where)
    if cleaned[-1]["role"] == "assistant":
        raise DataError(
            f"{where}: the last message of {name} is the assistant's, and a prompt would hold its own answer; leave "
            "it out"
        )
    if not cleaned[-1]["content"].strip():
        raise DataError(f"{where}: {name} is empty: its last message asks nothing; mend the row, or leave it out")
    return cleaned


def _message(message: Any, where: str) -> Message:
    """Without keys that have no value: a column of tables gives each row the keys of all."""
    message = {k: v for k, v in message.items() if v is not None} if isinstance(message, dict) else message
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise DataError(f"{where} is {str(message)[:80]!r}, not {{role, content}}. Needed: {SCHEMA}")
    return _plain(message | {"content": content})


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise DataError(f"{where} has a part that is no text ({kind!r}); only texts can be asked here")


def _parsed(text: str, where: str, name: str) -> Any:
    """Messages that were made text, by JSON or by Python; any other text is itself what is asked."""
    start = text.lstrip()[:200]
    is_like = start.startswith(("[", "{")) and "role" in start
    if not (is_like or _MESSAGE_FIRST.match(text)) or "role" not in text or "content" not in text:
        return text
    try:
        value = value_in(text)
    except ValueError:
        pass
    else:
        tables = value if isinstance(value, list) else [value]
        is_chat = bool(tables) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in tables)
        return value if is_chat else text
    if start.startswith(("[{'", '[{"')):
        raise DataError(
            f"{where}: {name} looks like messages made text, and is neither JSON nor Python's: {text[:80]!r}; "
            "write it as a list of {role, content}"
        )
    return text


def _gold(row: Row, where: str) -> tuple[str | None, bool]:
    """The ground truth, and whether it stood behind GSM8K's mark."""
    name = next((name for name in ANSWERS if row.get(name) is not None), None)
    if name is None:
        if not any(name in row for name in ANSWERS):
            raise DataError(f"{where}: no column {', '.join(ANSWERS)} in {', '.join(map(str, row))}. Needed: {SCHEMA}")
        return None, False
    value = row[name]
    if name == "reward_model":
        value = _reward_model(value, where)
    try:
        if name in ("answer", "solution") and isinstance(value, str):
            if (number := gsm8k_number(value)) is not None:
                return ground_truth_of(number), True
            if MARK in value:
                raise NoGroundTruth(
                    f"text with {MARK} that does not end in a line {MARK} NUMBER: {value[-40:]!r}; put the answer "
                    "alone into ground_truth"
                )
            value = last_box(value) if name == "solution" else value
        return ground_truth_of(value), False
    except NoGroundTruth as error:
        place = "ground_truth" if name == "reward_model" else name
        raise DataError(f"{where}: {place} is {error}") from None


def _reward_model(value: Any, where: str) -> Any:
    table = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            table = value_in(value)
        except ValueError:
            table = None
    if not isinstance(table, dict):
        raise DataError(f"{where}: reward_model is {str(value)[:80]!r}, not {{ground_truth}}. Needed: {SCHEMA}")
    return table.get("ground_truth")


def _extra_info(info: Any, where: str) -> dict[str, Any]:
    """What JSON has not, such as a date, becomes text. Tables that are unlike each other may come as texts."""
    try:
        if info is None or isinstance(info, str):
            info = value_in(info) if info and info.strip() else {}
    except ValueError as error:
        raise DataError(f"{where}: extra_info is text, but neither JSON nor Python's: {error}") from error
    if not isinstance(info, dict):
        raise DataError(f"{where}: extra_info is a {type(info).__name__}, not a table. Needed: {SCHEMA}")
    return _plain(info)


def _plain(value: Any) -> Any:
    """As JSON has it. A number that is none is no value; a fraction is the nearest float."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float | Decimal):
        number = float(value)
        return number if math.isfinite(number) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _check_characters(problem: Problem, where: str) -> None:
    """Half of a pair of UTF-16 ("\\ud83d" alone) is no character: no tokenizer takes it, and no file."""
    texts = [problem.messages, problem.ground_truth, problem.data_source, problem.extra_info]
    try:
        json.dumps(texts, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"{where}: it has {half!r}, which is half of a character; mend the row's text") from None
