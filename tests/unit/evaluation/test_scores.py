"""A benchmark's numbers by hand, the average over the paper's columns, and the tables."""

import re
from pathlib import Path

import pytest

from megatron_nft.evaluation.samples import Answer
from megatron_nft.evaluation.scores import GradedPrompt, average, score
from megatron_nft.evaluation.table import paper_rows, series_rows, text_tables
from megatron_nft.observe.metrics import METRICS
from megatron_nft.observe.published import COLUMNS, ROWS, SERIES, column_of
from megatron_nft.types import Verdict


def graded(*outcomes, truncated=()):
    """A prompt; an answer's outcome is its kind and what it finally says: "right 7"."""
    kinds, finals = zip(*(outcome.split() for outcome in outcomes), strict=True)
    return GradedPrompt(
        answers=tuple(Answer(text="", num_tokens=10 * (i + 1), truncated=i in truncated) for i in range(len(outcomes))),
        finals=tuple(None if final == "-" else final for final in finals),
        verdicts=tuple(Verdict(kind=kind) for kind in kinds),
    )


PROMPTS = [
    graded("right 7", "right 7", "wrong 8", "unparsable -"),
    graded("wrong 1", "timeout 2", "right 3", "right 3", truncated=(3,)),
]


def test_the_numbers_of_two_prompts():
    scores = score("aime24", "AIME24", PROMPTS, 0, 4, seed=1)
    m = scores.metrics
    assert m["eval/avg_at_k"] == (2 / 4 + 1 / 4) / 2
    assert m["eval/pass_at_k"] == 1.0
    assert scores.pass_at == {1: 0.375, 2: pytest.approx(((1 - 1 / 6) + 0.5) / 2), 4: 1.0}
    assert m["eval/maj_at_k"] == (1 + 1 / 3) / 2  # the truncated 3 has no vote: 1, 2 and 3 are equally frequent
    assert (m["eval/prompts"], m["eval/k"], m["eval/answer_tokens_mean"]) == (2, 4, 25)
    assert m["eval/truncated_fraction"] == 1 / 8
    kinds = {kind: m[f"verdict/{kind}"] for kind in ("right", "wrong", "unparsable", "timeout", "error")}
    assert kinds == {"right": 3, "wrong": 3, "unparsable": 1, "timeout": 1, "error": 0}
    assert m["eval/avg_at_k_low"] == 0.25 and m["eval/avg_at_k_high"] == 0.5
    assert set(m) <= set(METRICS)


def test_a_prompt_that_was_too_long_to_ask_counts_as_wrong():
    scores = score("aime24", "AIME24", PROMPTS, 2, 4, seed=1)
    m = scores.metrics
    assert m["eval/avg_at_k"] == (2 / 4 + 1 / 4) / 4
    assert (m["eval/pass_at_k"], m["eval/prompts"], m["eval/prompts_too_long"]) == (0.5, 4, 2)
    assert scores.pass_at[1] == m["eval/avg_at_k"]


def all_six(**changes):
    right, wrong = graded("right 7"), graded("wrong 8")
    share = {column: 1 + place for place, column in enumerate(COLUMNS)}  # of 10
    return [
        score(column.lower(), column, [right] * share[column] + [wrong] * (10 - share[column]), 0, 1, seed=1)
        for column in COLUMNS
        if column not in changes.get("without", ())
    ]


def test_the_average_is_of_all_six_columns():
    mean, low, high = average(all_six())
    assert mean == pytest.approx(0.35)
    assert 0.15 < low < mean < high < 0.55
    assert high - low < 0.7 * 2 * 1.96 * (0.35 * 0.65 / 10) ** 0.5, "six benchmarks are surer than one"
    assert average(all_six(without=("AMC23",))) is None
    assert average([*all_six(), all_six()[0]]) is None


def test_the_papers_table_has_this_model_beside_the_published_rows():
    head, ours, ends, *published = paper_rows("hf", all_six())
    assert head == ["accuracy, %", *COLUMNS, "average"]
    assert ours == ["hf", "10.0", "20.0", "30.0", "40.0", "50.0", "60.0", "35.0"]
    assert all(re.fullmatch(r"\d+\.\d-\d+\.\d", cell) for cell in ends[1:])
    assert len(published) == len(ROWS)
    assert ["7B NFT (published)", "32.0", "83.2", "18.3", "88.5", "47.3", "40.8", "51.7"] in published
    _, ours, _, *_ = paper_rows("hf", all_six(without=("AMC23",)))
    assert ours[4] == ours[7] == "-"


def test_other_models_of_the_qwen_series_stand_beside_this_one():
    head, ours, _, *published = series_rows("hf", all_six(without=("AMC23",)))
    assert head == ["accuracy, %", "AIME24", "Minerva", "Olympiad", "MATH500", "average"]
    assert ours == ["hf", "10.0", "60.0", "50.0", "20.0", "35.0"]
    assert published[-1] == ["NFT-7B (published)", "32.0", "40.8", "47.3", "83.2", "50.8"] and len(published) == 7
    assert series_rows("hf", [score("odd", None, PROMPTS, 0, 4, seed=1)]) == []
    assert "Oat-7B-Zero (published)" in text_tables("hf", all_six())
    for model, (*columns, mean) in SERIES.items():
        assert None in columns or sum(columns) / 4 == pytest.approx(mean, abs=0.1), model


def test_the_readme_has_every_published_row():
    readme = Path("README.md").read_text()
    for name, values in [*ROWS.items(), *SERIES.items()]:
        assert f"| {name} | {' | '.join('' if v is None else f'{v:.1f}' for v in values)} |" in readme


def test_published_averages_are_those_of_their_columns():
    for method, (*columns, mean) in ROWS.items():
        assert sum(columns) / 6 == pytest.approx(mean, abs=0.1), method  # the paper's are rounded later


def test_the_text_says_what_is_missing():
    scores = [score("odd", None, PROMPTS, 1, 4, seed=1)]
    text = text_tables("hf", scores)
    assert "no average" not in text and "(published)" not in text and text.startswith("benchmark "), (
        "none is the paper's"
    )
    some = text_tables("hf", [*scores, *all_six(without=("AMC23", "Minerva"))])
    assert "no average: AMC23, Minerva not evaluated" in some and "7B base (published)" in some
    assert "graded by" not in some
    boxed = [
        score("math500", "MATH500", PROMPTS, 0, 4, 1, "boxed"),
        score("aime24", "AIME24", PROMPTS, 0, 4, 1, "boxed"),
    ]
    assert text_tables("hf", boxed).count("graded by") == 2
    assert "math500: graded by 'boxed', the published MATH500 by 'whole_text'" in text_tables("hf", boxed)
    assert "aime24: graded by 'boxed', the published AIME24 by 'strict_boxed'" in text_tables("hf", boxed)
    theirs = [score("aime24", "AIME24", PROMPTS, 0, 4, 1, "strict_boxed")]
    assert "graded by" not in text_tables("hf", theirs)
    assert "odd: 1 prompts beyond data.max_prompt_tokens count as wrong" in text
    assert re.search(r"^odd +3 +4 +25\.0 ", text, re.M)


def test_an_interval_of_no_width_is_no_certainty():
    remark = "odd: all prompts have the same accuracy"
    assert remark in text_tables("hf", [score("odd", None, [graded("wrong 8")] * 3, 0, 1, seed=1)])
    assert remark not in text_tables("hf", [score("odd", None, PROMPTS, 0, 4, seed=1)])


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (("aime24", "x"), "AIME24"),
        (("aime-2024-boxed_w_answer", "math_dapo_boxed"), "AIME24"),
        (("aime2025_32_dapo_boxed_w_answer",), "AIME25"),
        (("math500_boxed",), "MATH500"),
        (("test", "HuggingFaceH4/MATH-500"), "MATH500"),
        (("amc2023_32_dapo_boxed_w_answer",), "AMC23"),
        (("olympiadbench",), "Olympiad"),
        (("minerva_math",), "Minerva"),
        (("gsm8k_test", "gsm8k"), None),
    ],
)
def test_files_and_their_columns(names, column):
    assert column_of(*names) == column
