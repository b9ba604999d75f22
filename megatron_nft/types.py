"""What travels between the stages of a step, in the order in which it comes into being.

    Prompt        a question, tokenized                             data/prompts
    Rollout       one sampled answer and its engine_logprobs        rollout/vllm/engine
    Verdict       what the grader says of one answer                verdict/judge
    RolloutGroup  a prompt, its K rollouts and their verdicts       cluster/stream, verdict/judge
    TrainSequence one prompt + answer, ready for the loss           nft/groups
    MicroBatch    sequences packed into one forward pass            data/packing
    TrainBatch    microbatches by update and data-parallel rank     data/packing
    StepReport    the metrics of one step or evaluation             observe

Example: the prompt "1+1=" with answers "2" (right) and "3" (wrong) becomes a group with correct_rate 0.5 and then two
TrainSequences with token_ids [1, +, 1, =, 2] and [1, +, 1, =, 3], num_prompt_tokens 4, verdicts 1.0 and 0.0.

All are frozen: a stage that learns something new returns a new object (dataclasses.replace).
What is known of each answer token beyond the log-probs travels by name, as `columns`: whoever moves, packs or keeps
answers takes them along unread, so that one more is put in at one place and taken out at another.
The experts that an engine chose are a row for each token that it read, prompts included, and too many for the driver:
it holds an `Elsewhere` in their place, and the ranks that train on them fetch them.
Shape suffixes: _P prompt tokens, _A answer tokens, _T all tokens of a sequence, _R those of them whose experts are
known: the first R; all but the last, as a rule, which no engine reads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

VerdictKind = Literal["right", "wrong", "unparsable", "timeout", "error"]

Columns = Mapping[str, np.ndarray]
"""By name: a value, or an array of values, of each answer token: [A, ...] of any dtype but object."""

LOSS_COLUMNS = ("engine_logprobs", "old_logprobs", "reference_logprobs", "verdict", "correct_rate", "advantage")
"""What the loss finds at every answer token under these names, whatever else its answer has in `columns`."""

RESERVED_COLUMNS = {*LOSS_COLUMNS, "sequence_id"}
"""Names that a further column can't have; packing adds the last."""


class Elsewhere(ABC):
    """An array that is in no memory of this process: what is known of it here."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @abstractmethod
    def load(self) -> np.ndarray:
        """The array. For files; whoever computes with many gets them all at once (cluster/elsewhere.py)."""


Experts = np.ndarray | Elsewhere
"""uint8 or uint16 [R, layers, experts a token goes to]: by their numbers; a dense layer's row says nothing."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question, rendered with the chat template (or plain) and tokenized."""

    prompt_id: str  # unique in its data set, stable between runs: "<file stem>/<row>"
    text: str
    token_ids_P: np.ndarray  # int32 [P]
    ground_truth: str
    data_source: str
    extra_info: dict[str, Any] = field(default_factory=dict)  # the row's, as JSON has it; for graders of one's own


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled answer."""

    text: str
    token_ids_A: np.ndarray  # int32 [A]; includes the end-of-sequence token where the engine produced one
    engine_logprobs_A: np.ndarray  # float32 [A]; log-probs of the sampling distribution (after temperature)
    truncated: bool  # cut at max_answer_tokens; counts as wrong
    policy_version: int  # weight syncs that the engine had received when it sampled the first token
    newer_versions: tuple[tuple[int, int], ...] = ()  # (first token, policy_version) of each sync that came on the way
    columns: Columns = field(default_factory=dict)  # further ones; the same in all rollouts of a run
    experts_R: Experts | None = None  # that the engine chose for the prompt's and the answer's tokens, if asked

    def __post_init__(self) -> None:
        _check_columns(self.columns, len(self.token_ids_A))

    @property
    def policy_versions_A(self) -> np.ndarray:
        """Int32 [A]: the policy_version that sampled each token."""
        versions_A = np.full(len(self.token_ids_A), self.policy_version, np.int32)
        for first, version in self.newer_versions:
            versions_A[first:] = version
        return versions_A


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the grader says of one answer. Without a score only "right" earns a reward; the kinds are counted apart."""

    kind: VerdictKind
    detail: str = ""  # the extracted answer, or what went wrong
    score: float | None = None  # within [0, 1], for methods that take one; None: right or wrong is all
    rule: str = ""  # which of verdict/'s rules decided, where one did: "evaluated", "unit left out" ...

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"a grader's score is {self.score}; it must be a number from 0 to 1")

    @property
    def is_right(self) -> bool:
        return self.kind == "right"

    @property
    def reward(self) -> float:
        """The score; without one, 1 for a right answer and 0 for any other."""
        return float(self.is_right) if self.score is None else self.score

    @property
    def is_scored(self) -> bool:
        """Is worth something other than 1 for a right and 0 for any other answer."""
        return self.reward != self.is_right

    @property
    def is_graded(self) -> bool:
        """Says something of the answer; a timeout or an error says something of the machine, or of the ground truth."""
        return self.kind not in ("timeout", "error")


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """A prompt with its K rollouts, and their verdicts once judged (in the same order)."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...] = ()

    @property
    def rights(self) -> list[bool]:
        """Per rollout: graded right, and not truncated."""
        return [v.is_right and not r.truncated for v, r in zip(self.verdicts, self.rollouts, strict=True)]

    @property
    def scores(self) -> list[float]:
        """Per rollout: what its verdict is worth, nothing if truncated. 1 and 0 unless the grader gives scores."""
        return [0.0 if r.truncated else v.reward for v, r in zip(self.verdicts, self.rollouts, strict=True)]

    @property
    def graded(self) -> "RolloutGroup":
        """Without the answers that could not be graded: these are neither right nor wrong. A truncated one is wrong."""
        pairs = zip(self.rollouts, self.verdicts, strict=True)
        kept = [(rollout, verdict) for rollout, verdict in pairs if verdict.is_graded or rollout.truncated]
        if len(kept) == len(self.rollouts):
            return self
        return replace(self, rollouts=tuple(r for r, _ in kept), verdicts=tuple(v for _, v in kept))

    @property
    def correct_rate(self) -> float:
        """Share of right answers among the graded ones, p in the paper."""
        return sum(self.rights) / (len(self.graded.rollouts) or 1)

    @property
    def is_mixed(self) -> bool:
        """Has right and wrong answers, or different scores; others carry no learning signal."""
        return len(set(self.graded.scores)) > 1


@dataclass(frozen=True, kw_only=True)
class TrainSequence:
    """One prompt + answer with all that the loss needs. Log-probs are of the answer's tokens."""

    token_ids_T: np.ndarray  # int32 [T = P + A]
    num_prompt_tokens: int
    verdict: float  # 1.0 right, 0.0 wrong
    correct_rate: float  # of its group
    advantage: float = 0.0  # of GRPO and its kin; NFT learns from verdict and correct_rate
    engine_logprobs_A: np.ndarray  # float32 [A]; the sampler's
    old_logprobs_A: np.ndarray | None = None  # float32 [A]; the actor's before the first update; set by score or train
    reference_logprobs_A: np.ndarray | None = None  # float32 [A]; the frozen reference model's; set by score if asked
    columns: Columns = field(default_factory=dict)  # further ones: the rollout's, and those that its method adds
    experts_R: Experts | None = None  # the rollout's

    def __post_init__(self) -> None:
        _check_columns(self.columns, self.num_answer_tokens)
        if self.experts_R is not None and self.experts_R.shape[0] > self.num_tokens:
            raise ValueError(f"experts of {self.experts_R.shape[0]} tokens, and the sequence has {self.num_tokens}")

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_T)

    @property
    def num_answer_tokens(self) -> int:
        return len(self.token_ids_T) - self.num_prompt_tokens


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Sequences that share one forward pass, packed end to end. May be empty: ranks must run equally many."""

    sequences: tuple[TrainSequence, ...]
    blank: Columns = field(default_factory=dict)  # of an empty one: the batch's further columns, without a row

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.sequences)

    @property
    def emptied(self) -> "MicroBatch":
        """One without sequences that knows the columns of this one."""
        if not self.sequences:
            return self
        return MicroBatch(sequences=(), blank={name: x[:0] for name, x in self.sequences[0].columns.items()})


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """All microbatches of one step: updates[u][d] are those of data-parallel rank d in optimizer update u.

    Within an update every rank has the same number of microbatches.
    """

    updates: tuple[tuple[tuple[MicroBatch, ...], ...], ...]

    @classmethod
    def of(cls, updates: Iterable[Iterable[Iterable[Sequence[TrainSequence]]]]) -> "TrainBatch":
        """The batch of these sequences by update, rank and microbatch; empty microbatches get to know their columns."""
        given = [[[tuple(micro) for micro in rank] for rank in update] for update in updates]
        full = [micro for update in given for rank in update for micro in rank if micro]
        empty = MicroBatch(sequences=full[0] if full else ()).emptied
        return cls(
            updates=tuple(
                tuple(tuple(MicroBatch(sequences=micro) if micro else empty for micro in rank) for rank in update)
                for update in given
            )
        )

    @property
    def sequences(self) -> list[TrainSequence]:
        return [s for update in self.updates for rank in update for micro in rank for s in micro.sequences]

    def map_sequences(self, function: Callable[[TrainSequence, int], TrainSequence]) -> "TrainBatch":
        """The batch with function(sequence, its data-parallel rank) in place of each sequence, in the same order."""
        return TrainBatch.of(
            [
                [[function(s, rank) for s in m.sequences] for m in microbatches]
                for rank, microbatches in enumerate(update)
            ]
            for update in self.updates
        )


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One record of metrics.jsonl: a step's or an evaluation's metrics under their public names, such as "nft/loss"."""

    step: int
    kind: Literal["step", "evaluation"]
    time: str  # ISO 8601, with the offset from UTC
    metrics: dict[str, float] = field(default_factory=dict)
    groups_by_correct_rate: tuple[int, ...] = ()  # of a step: sampled groups per bin (observe/metrics.py)
    benchmarks: dict[str, dict[str, float]] = field(default_factory=dict)  # of an evaluation: file -> its metrics


# --- Columns ---------------------------------------------------------------------------------------------------------


def join_columns(answers: Sequence[Rollout | TrainSequence]) -> dict[str, np.ndarray]:
    """The answers' further columns, end to end.

    Raises:
        ValueError: not all answers have the same.
    """
    kinds = {frozenset((name, x.dtype, x.shape[1:]) for name, x in a.columns.items()) for a in answers}
    if len(kinds) > 1:
        listed = sorted(str(sorted(f"{n}: {dtype}{list(shape)}" for n, dtype, shape in kind)) for kind in kinds)
        raise ValueError(
            f"answers of a batch have different columns, {' and '.join(listed)}; all must come from the same settings"
        )
    names = answers[0].columns if answers else ()
    return {name: np.concatenate([a.columns[name] for a in answers]) for name in names}


def split_columns(joined: Columns, lengths: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Each answer's columns again, from `join_columns` and the answers' numbers of tokens."""
    ends = np.cumsum(lengths)[:-1]
    parts = {name: np.split(x, ends) for name, x in joined.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(lengths))]


def _check_columns(columns: Columns, num_tokens: int) -> None:
    for name, x in columns.items():
        if name in RESERVED_COLUMNS:
            raise ValueError(f"a further column can't be named {name!r}, which is one of {sorted(RESERVED_COLUMNS)}")
        if len(x) != num_tokens or x.dtype == object:
            raise ValueError(
                f"column {name!r} is {x.dtype} {list(x.shape)}; it must have a row of numbers for each of the answer's "
                f"{num_tokens} tokens"
            )
