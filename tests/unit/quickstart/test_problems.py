"""The quickstart's problems: right answers, disjoint splits, determinism, the parquet schema, a lossless tokenizer."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from launch.quickstart.problems import (
    LARGEST_RESULT,
    PHRASES,
    Demonstration,
    Problem,
    as_row,
    demonstrations,
    drills,
    problems,
    right_answer,
)

ASSETS = Path(__file__).parents[2] / "assets" / "quickstart"
EQUATION = re.compile(r"(\d+)([+*-])(\d+)=(\d+)")


def holds(equation: str) -> bool:
    """Whether "a+b=c" (or -, *) is true; computed by counting, not with the generator's own arithmetic."""
    a, operation, b, c = EQUATION.fullmatch(equation).groups()
    a, b, c = int(a), int(b), int(c)
    if operation == "+":
        return c - b == a
    if operation == "-":
        return c + b == a
    return sum([a] * b) == c


def story_result(text: str) -> int:
    """The answer of a problem's text, read sentence by sentence with rules of its own."""
    story, _, _ = text.partition(" How many ")
    first, *steps = story.rstrip(".").split(". ")
    value = int(re.search(r"\d+", first).group())
    for sentence in steps:
        k = int(re.search(r"\d+", sentence).group())
        if re.search(r"times|such bags", sentence):
            value = sum([k] * value)
        elif re.search(r"^That is \d+ fewer|buys|finds|wins|gives (him|her)|back|has \d+ more", sentence):
            value += k
        else:
            value -= k
    return value


def sample(n: int = 500, seed: int = 7) -> list[Problem]:
    return list(islice(problems(seed), n))


def demonstrated(n: int = 500, seed: int = 7) -> list[Demonstration]:
    return list(islice(demonstrations(seed, without=frozenset()), n))


def parquet_rows(name: str) -> list[dict]:
    path = ASSETS / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not made yet: run launch/quickstart/make_assets.py")
    return pq.read_table(path).to_pylist()


def test_a_problem_by_hand() -> None:
    problem = next(p for p in sample() if len(p.steps) == 3)
    value = problem.start
    for step in problem.steps:
        value = {"+": value + step.k, "-": value - step.k, "*": value * step.k}[PHRASES[step.phrase].operation]
    assert problem.answer == value


def test_answers_follow_from_the_text() -> None:
    for problem in sample():
        assert story_result(problem.text) == problem.answer, problem.text
        assert 1 <= problem.answer <= LARGEST_RESULT


def test_worked_solutions_hold_and_chain() -> None:
    for problem in sample():
        *lines, box = right_answer(problem).split("\n")
        quotes, equations = zip(*(line.split(": ") for line in lines), strict=True)
        assert all(word in problem.text for quote in quotes for word in quote.split())
        assert all(holds(equation) for equation in equations)
        results = [equation.split("=")[1] for equation in equations]
        starts = [re.match(r"\d+", equation).group() for equation in equations]
        assert starts == [str(problem.start), *results[:-1]]
        assert box == f"\\boxed{{{problem.answer}}}" == f"\\boxed{{{results[-1]}}}"


def test_pupils_are_marked_as_they_answer() -> None:
    for demonstration in demonstrated():
        boxed = re.fullmatch(r"(?:.+\n)+\\boxed\{(\d+)\}", demonstration.answer) or re.fullmatch(
            r"\\boxed\{(\d+)\}", demonstration.answer
        )
        assert demonstration.is_right == (int(boxed.group(1)) == story_result(demonstration.problem.text))


def test_careful_pupils_are_right_and_the_mix_is_mostly_wrong() -> None:
    shown = demonstrated(3000)
    careful = [d.is_right for d in shown if d.is_careful]
    hasty = [d.is_right for d in shown if not d.is_careful]
    assert 0.2 < len(careful) / len(shown) < 0.4
    assert sum(careful) / len(careful) > 0.93
    assert sum(hasty) / len(hasty) < 0.3
    assert all((": " in d.answer) == d.is_careful for d in shown)
    equations = [e.group() for d in shown for e in EQUATION.finditer(d.answer)]
    assert 0.94 < sum(map(holds, equations)) / len(equations) < 1.0  # hasty pupils slip, rarely


def test_drills_are_right() -> None:
    for _, answer in islice(drills(7), 100):
        assert all(holds(equation) for equation in answer.split("\n"))


def test_streams_are_deterministic_and_seeded() -> None:
    assert sample(50) == sample(50)
    assert sample(50) != sample(50, seed=8)
    assert demonstrated(50) == demonstrated(50)
    assert list(islice(drills(1), 5)) == list(islice(drills(1), 5))


def test_streams_stay_away_from_what_they_are_told() -> None:
    held_out = frozenset(p.signature for p in sample())
    others = list(islice(problems(8, without=held_out), 2000))
    assert len({p.signature for p in others}) == len(others)
    assert held_out.isdisjoint(p.signature for p in others)
    demonstrations_ = islice(demonstrations(9, without=held_out), 2000)
    assert held_out.isdisjoint(d.problem.signature for d in demonstrations_)


def test_signature_ignores_names_and_things() -> None:
    by_signature: dict = {}
    for problem in islice(problems(7, unique=False), 20000):
        by_signature.setdefault(problem.signature, set()).add(problem.text)
    assert any(len(texts) > 1 for texts in by_signature.values())


def test_row_schema() -> None:
    problem = sample(1)[0]
    assert as_row(problem, index=3, split="train") == {
        "data_source": "quickstart/word_problems",
        "prompt": [{"role": "user", "content": problem.text}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
        "extra_info": {"index": 3, "split": "train"},
    }


def numbers_and_phrases(text: str) -> str:
    """The text without names and things: what two problems must not share, found from the files alone."""
    words = re.sub(r"\b(He|She|him|her)\b", "_", text)
    thing = re.search(r"How many (\w+)", words).group(1)
    return re.sub(r"\b(?!How\b|Put\b|That\b)[A-Z][a-z]+\b", "N", words.replace(thing, "things"))


def test_assets_are_right_unique_and_disjoint() -> None:
    train, held_out = parquet_rows("train"), parquet_rows("held_out")
    assert len(train) >= 4000 and len(held_out) >= 200
    texts = [row["prompt"][0]["content"] for row in [*train, *held_out]]
    assert len({numbers_and_phrases(text) for text in texts}) == len(texts)
    for row, text in zip([*train, *held_out], texts, strict=True):
        assert int(row["reward_model"]["ground_truth"]) == story_result(text)
        assert "\\boxed{}" in text
    assert [row["extra_info"]["index"] for row in train] == list(range(len(train)))


def test_demonstrated_problems_are_not_in_the_assets() -> None:
    texts = {numbers_and_phrases(r["prompt"][0]["content"]) for r in parquet_rows("train") + parquet_rows("held_out")}
    for demonstration in islice(warm_up_demonstrations(), 5000):
        assert numbers_and_phrases(demonstration.problem.text) not in texts


def warm_up_demonstrations() -> Iterator[Demonstration]:
    """The stream that make_assets.py draws from."""
    held_out = list(islice(problems(100), 256))
    used = frozenset(p.signature for p in held_out)
    train = list(islice(problems(101, without=used), 4000))
    return demonstrations(102, without=used | frozenset(p.signature for p in train))


def test_tokenizer_round_trip_and_lengths() -> None:
    rows = parquet_rows("held_out")
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    for row in rows:
        text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) <= 64
    for demonstration in demonstrated(200):
        ids = tokenizer.encode(demonstration.answer)
        assert tokenizer.decode(ids) == demonstration.answer
        assert len(ids) < 48
    anything = "Ünï 日本 \t x  \n\n  {1} 12345 \\frac{1}{2}"
    assert tokenizer.decode(tokenizer.encode(anything)) == anything
    assert len(tokenizer.encode("42")) == 2  # one token a digit
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
