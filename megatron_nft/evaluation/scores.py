"""Graded answers of a benchmark -> its public numbers, under the names of observe/metrics.py.

evaluate.py hands over each prompt's answers with their verdicts; table.py shows what comes out.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from megatron_nft.evaluation.accuracy import avg_at_k, bootstrap_means, interval, maj_at_k, pass_at_k, seed_of
from megatron_nft.evaluation.samples import Answer
from megatron_nft.observe.metrics import check_names
from megatron_nft.observe.published import COLUMNS
from megatron_nft.types import Verdict, VerdictKind


@dataclass(frozen=True, kw_only=True)
class GradedPrompt:
    """A prompt's answers, what each finally says, and their verdicts, in the same order."""

    answers: tuple[Answer, ...]
    finals: tuple[str | None, ...]  # None: no final answer found
    verdicts: tuple[Verdict, ...]

    @property
    def rights(self) -> list[bool]:
        """Per answer: graded right, and not truncated."""
        return [v.is_right and not a.truncated for v, a in zip(self.verdicts, self.answers, strict=True)]

    @property
    def votes(self) -> list[str | None]:
        """Per answer: what it votes for; a truncated one has no vote."""
        return [None if a.truncated else final for a, final in zip(self.answers, self.finals, strict=True)]


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """The numbers of one benchmark."""

    name: str
    column: str | None  # of the paper's table
    mode: str = ""  # of its verdicts
    metrics: dict[str, float]
    pass_at: dict[int, float]  # k -> pass@k
    avg_means_B: np.ndarray = field(repr=False)  # resampled means of avg@k, for intervals of averages


def score(
    name: str, column: str | None, prompts: Sequence[GradedPrompt], num_too_long: int, k: int, seed: int, mode: str = ""
) -> BenchmarkScores:
    """All numbers of a benchmark with k answers per prompt.

    Args:
        num_too_long: prompts that were not asked; they count as wrong in every accuracy.
        seed: of the bootstrap.
        mode: of the verdicts.
    """
    unasked = [0.0] * num_too_long
    answers = [answer for prompt in prompts for answer in prompt.answers]
    values = {
        "avg": [avg_at_k(p.rights) for p in prompts] + unasked,
        "pass": [pass_at_k(k, sum(p.rights), k) for p in prompts] + unasked,
        "maj": [maj_at_k(p.votes, p.rights) for p in prompts] + unasked,
    }
    means_B = {kind: bootstrap_means(x, seed_of(name, seed)) for kind, x in values.items()}
    metrics: dict[str, float] = {"eval/prompts": len(prompts) + num_too_long, "eval/prompts_too_long": num_too_long}
    metrics["eval/k"] = k
    for kind, x in values.items():
        low, high = interval(means_B[kind])
        metrics |= {
            f"eval/{kind}_at_k": float(np.mean(x)),
            f"eval/{kind}_at_k_low": low,
            f"eval/{kind}_at_k_high": high,
        }
    metrics["eval/answer_tokens_mean"] = sum(a.num_tokens for a in answers) / len(answers)
    metrics["eval/truncated_fraction"] = sum(a.truncated for a in answers) / len(answers)
    kinds = Counter(verdict.kind for prompt in prompts for verdict in prompt.verdicts)
    num_right = sum(sum(prompt.rights) for prompt in prompts)
    metrics |= {f"verdict/{kind}": kinds[kind] for kind in get_args(VerdictKind)}
    metrics |= {"verdict/right": num_right, "verdict/wrong": kinds["wrong"] + kinds["right"] - num_right}
    check_names(metrics)
    powers = [2**i for i in range(k.bit_length()) if 2**i < k]
    pass_at = {j: float(np.mean([pass_at_k(k, sum(p.rights), j) for p in prompts] + unasked)) for j in [*powers, k]}
    return BenchmarkScores(
        name=name, column=column, mode=mode, metrics=metrics, pass_at=pass_at, avg_means_B=means_B["avg"]
    )


def average(
    benchmarks: Sequence[BenchmarkScores], columns: Collection[str] = tuple(COLUMNS)
) -> tuple[float, float, float] | None:
    """Mean of avg@k over columns, those of the paper's table, with its interval; None unless each is there once."""
    by_column = {b.column: b for b in benchmarks}
    if sorted(b.column for b in benchmarks if b.column in columns) != sorted(columns):
        return None
    chosen = [by_column[column] for column in columns]
    low, high = interval(np.mean([b.avg_means_B for b in chosen], axis=0))
    return float(np.mean([b.metrics["eval/avg_at_k"] for b in chosen])), low, high
