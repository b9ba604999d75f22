"""Which sampled answers a run keeps for people to read, and as what.

Judged groups come in, plain records go out: a seeded few of each step for rollouts.jsonl, and a bounded share of
those for the report page. Called by `observe.report`.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from megatron_nft.observe.whole_file import script_json
from megatron_nft.types import RolloutGroup, TrainBatch

AnswerRecord = dict[str, Any]
Source = Literal["train", "evaluation"]

MAX_PAGE_CHARS = 1_000_000  # as embedded: with its curves a page stays below 2 MB, and opens at once on a phone
MAX_TEXT_CHARS = 8_000  # of one prompt or answer on the page; rollouts.jsonl has all of it
MAX_GROUP_CHARS = 40  # of what another answer of the group was taken for
MAX_STRIP_TOKENS = 300  # of an answer whose tokens are shown with their log-probs
STRIPS = 4  # answers of a step that have them


def choose_answers(
    groups: Sequence[RolloutGroup], count: int, *, step: int, source: Source, seed: int
) -> list[AnswerRecord]:
    """Up to `count` answers, half of them right where there are enough of both; the same ones for the same seed."""
    places = [(is_right, group, i) for group in groups for i, is_right in enumerate(group.rights)]
    random.Random(f"{seed}/{source}/{step}").shuffle(places)
    right = [place for place in places if place[0]]
    wrong = [place for place in places if not place[0]]
    num_right = min(len(right), max(count // 2, count - len(wrong)))
    beside = {id(group) for _, group, _ in right[:num_right]}
    wrong.sort(key=lambda place: id(place[1]) not in beside)  # rather of the same prompts: they are read side by side
    chosen = right[:num_right] + wrong[: count - num_right]
    return [_record(group, i, step, source) for _, group, i in chosen]


def add_strips(
    records: Sequence[AnswerRecord],
    groups: Sequence[RolloutGroup],
    batch: TrainBatch | None,
    token_text: Callable[[int], str] | None,
) -> None:
    """Gives the first STRIPS of them their tokens, each with the engine's log-prob, and the actor's if it was trained
    on.

    Args:
        groups: that the records are of.
        batch: that the step has trained on.
        token_text: a token as text; None: its number is shown.
    """
    rollouts = {(group.prompt.prompt_id, r.text): r for group in groups for r in group.rollouts}
    scored = {}
    for sequence in batch.sequences if batch is not None else ():
        if sequence.old_logprobs_A is not None:
            scored[sequence.token_ids_T[sequence.num_prompt_tokens :].tobytes()] = sequence.old_logprobs_A
    for record in records[:STRIPS]:
        rollout = rollouts[record["prompt_id"], record["answer"]]
        ids = rollout.token_ids_A[:MAX_STRIP_TOKENS].tolist()
        record["tokens"] = [token_text(i) if token_text is not None else str(i) for i in ids]
        record["engine_logprobs"] = _rounded(rollout.engine_logprobs_A)
        if (logprobs := scored.get(rollout.token_ids_A.astype(np.int32).tobytes())) is not None:
            record["actor_logprobs"] = _rounded(logprobs)


def _rounded(logprobs_A: np.ndarray) -> list[float]:
    """Of what is shown: four significant digits, so that a gap can be seen."""
    return [float(f"{value:.4g}") for value in logprobs_A[:MAX_STRIP_TOKENS].tolist()]


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
        "place": i,
        "group": [
            [
                "wrong" if v.is_right and r.truncated else v.kind,
                len(r.token_ids_A),
                v.detail[:MAX_GROUP_CHARS],
            ]
            for r, v in zip(group.rollouts, group.verdicts, strict=True)
        ],
    }


class PageAnswers:
    """The answers on the report page, kept below MAX_PAGE_CHARS by dropping every other batch of the older ones."""

    def __init__(self, max_chars: int = MAX_PAGE_CHARS):
        self._max_chars = max_chars
        self._batches: list[list[AnswerRecord]] = []
        self._sizes: list[int] = []

    def add(self, records: Sequence[AnswerRecord]) -> None:
        """One step's or evaluation's."""
        if not records:
            return
        self._batches.append([{k: shortened(v) for k, v in record.items()} for record in records])
        self._sizes.append(len(script_json(self._batches[-1])))
        while len(self._batches) > 2 and sum(self._sizes) > self._max_chars:
            self._batches = self._batches[:-1:2] + self._batches[-1:]  # the first and the last stay
            self._sizes = self._sizes[:-1:2] + self._sizes[-1:]

    @property
    def records(self) -> list[AnswerRecord]:
        return [record for batch in self._batches for record in batch]


def shortened(value: Any) -> Any:
    """A long text without its middle, for a page; anything else as it is."""
    if not isinstance(value, str) or len(value) <= MAX_TEXT_CHARS:
        return value
    half = MAX_TEXT_CHARS // 2
    gap = f"\n[... {len(value) - 2 * half} characters left out; the .jsonl file has all of it ...]\n"
    return value[:half] + gap + value[-half:]
