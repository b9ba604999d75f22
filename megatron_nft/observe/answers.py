"""Which sampled answers a run keeps for people to read, and as what.

Judged groups come in, plain records go out: a seeded few of each step for rollouts.jsonl, and a bounded share of
those for the report page. Called by `observe.report`.
"""

import random
from collections.abc import Sequence
from typing import Any, Literal

from megatron_nft.types import RolloutGroup

AnswerRecord = dict[str, Any]
Source = Literal["train", "evaluation"]

MAX_PAGE_CHARS = 2_000_000  # a page of a few MB still opens at once on a phone
MAX_TEXT_CHARS = 8_000  # of one prompt or answer on the page; rollouts.jsonl has all of it


def choose_answers(
    groups: Sequence[RolloutGroup], count: int, *, step: int, source: Source, seed: int
) -> list[AnswerRecord]:
    """Up to `count` answers, half of them right where there are enough of both; the same ones for the same seed."""
    places = [(is_right, group, i) for group in groups for i, is_right in enumerate(group.rights)]
    random.Random(f"{seed}/{source}/{step}").shuffle(places)
    right = [place for place in places if place[0]]
    wrong = [place for place in places if not place[0]]
    num_right = min(len(right), max(count // 2, count - len(wrong)))
    chosen = right[:num_right] + wrong[: count - num_right]
    return [_record(group, i, step, source) for _, group, i in chosen]


def _record(group: RolloutGroup, i: int, step: int, source: Source) -> AnswerRecord:
    rollout, verdict = group.rollouts[i], group.verdicts[i]
    return {
        "step": step,
        "source": source,
        "prompt_id": group.prompt.prompt_id,
        "prompt": group.prompt.text,
        "answer": rollout.text,
        "ground_truth": group.prompt.ground_truth,
        "verdict": verdict.kind,
        "detail": verdict.detail,
        "rule": verdict.rule,
        "truncated": rollout.truncated,
        "policy_version": rollout.policy_version,
        "correct_rate": group.correct_rate,
        "num_tokens": len(rollout.token_ids_A),
    }


class PageAnswers:
    """The answers on the report page, kept below MAX_PAGE_CHARS by dropping every other batch of the older ones."""

    def __init__(self, max_chars: int = MAX_PAGE_CHARS):
        self._max_chars = max_chars
        self._batches: list[list[AnswerRecord]] = []

    def add(self, records: Sequence[AnswerRecord]) -> None:
        if not records:
            return
        self._batches.append([{k: shortened(v) for k, v in record.items()} for record in records])
        while len(self._batches) > 2 and self._num_chars() > self._max_chars:
            self._batches = self._batches[:-1:2] + self._batches[-1:]  # the first and the last stay

    @property
    def records(self) -> list[AnswerRecord]:
        return [record for batch in self._batches for record in batch]

    def _num_chars(self) -> int:
        return sum(len(str(record["prompt"])) + len(str(record["answer"])) for record in self.records)


def shortened(value: Any) -> Any:
    """A long text without its middle, for a page; anything else as it is."""
    if not isinstance(value, str) or len(value) <= MAX_TEXT_CHARS:
        return value
    half = MAX_TEXT_CHARS // 2
    gap = f"\n[... {len(value) - 2 * half} characters left out; the .jsonl file has all of it ...]\n"
    return value[:half] + gap + value[-half:]
