"""The page of an evaluation: its tables, and answers to read, as one HTML file that needs no network.

Scores and graded prompts come in from evaluate.py; the page goes out, made of a run's report's parts (observe/page).
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_nft.evaluation.scores import BenchmarkScores, GradedPrompt
from megatron_nft.evaluation.table import detail_rows, notes, paper_rows, series_rows
from megatron_nft.observe.answers import MAX_PAGE_CHARS, AnswerRecord, shortened
from megatron_nft.observe.html import fill_template
from megatron_nft.types import Prompt

ANSWERS_PER_BENCHMARK = 200
PARTS = ("style.css", "charts.js", "tables.js", "answers.js", "evaluation.js")

Graded = Sequence[tuple[Prompt, GradedPrompt]]


def render_evaluation(
    model: str, settings: str, scores: Sequence[BenchmarkScores], graded: Mapping[str, Graded], seed: int
) -> str:
    """The page as text.

    Args:
        graded: benchmark -> its prompts with their graded answers, of which some are on the page.
        seed: of the choice.
    """
    most_chars = MAX_PAGE_CHARS // max(len(graded), 1)
    data: dict[str, Any] = {
        "model": model,
        "settings": settings,
        "tables": [paper_rows(model, scores), series_rows(model, scores), detail_rows(scores)],
        "notes": notes(scores),
        "answers": [a for name, its in graded.items() for a in choose_answers(name, its, seed, most_chars)],
    }
    return fill_template(
        "evaluation.html", ("style.css", "charts.js", "tables.js", "answers.js", "evaluation.js"), data
    )


def choose_answers(benchmark: str, graded: Graded, seed: int, most_chars: int) -> list[AnswerRecord]:
    """Up to ANSWERS_PER_BENCHMARK answers and so many characters, of every kind of outcome equally many where there
    are; the same for the same seed."""
    by_outcome: dict[tuple[str, bool], list[AnswerRecord]] = {}
    for prompt, result in graded:
        for answer, verdict in zip(result.answers, result.verdicts, strict=True):
            record = {
                "benchmark": benchmark,
                "prompt_id": prompt.prompt_id,
                "prompt": shortened(prompt.text),
                "answer": shortened(answer.text),
                "ground_truth": prompt.ground_truth,
                "verdict": verdict.kind,
                "detail": verdict.detail,
                "truncated": answer.truncated,
                "correct_rate": sum(result.rights) / len(result.rights),
                "num_tokens": answer.num_tokens,
            }
            by_outcome.setdefault((verdict.kind, answer.truncated), []).append(record)
    piles = [by_outcome[outcome] for outcome in sorted(by_outcome)]
    for pile in piles:
        random.Random(f"{seed}/{benchmark}").shuffle(pile)
    chosen: list[AnswerRecord] = []
    for place in range(max(map(len, piles), default=0)):
        for pile in piles:
            if place < len(pile) and len(chosen) < ANSWERS_PER_BENCHMARK and most_chars > 0:
                chosen.append(pile[place])
                most_chars -= len(pile[place]["prompt"]) + len(pile[place]["answer"])
    return chosen
