"""Where the grading modes agree on the same answers, and where not: is a low score the model's, or the grader's?

    python -m megatron_nft.verdict.agreement runs/NAME/rollouts.jsonl [--modes boxed strict_boxed ...]

Answers with their ground truths come in, a table of verdicts, of agreement, and examples go out. Reads a run's
rollouts.jsonl and an evaluation's samples.jsonl; needs no model.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import get_args

from megatron_nft.config import VerdictConfig, VerdictMode
from megatron_nft.types import Verdict, VerdictKind
from megatron_nft.verdict.golds import check_golds
from megatron_nft.verdict.judge import Judge, JudgeError

ALL_MODES: tuple[VerdictMode, ...] = get_args(VerdictMode)
EXAMPLES_PER_PAIR = 3
EXAMPLE_CHARS = 60


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The verdicts of several modes on the same answers."""

    answers: tuple[str, ...]
    golds: tuple[str, ...]
    verdicts: dict[VerdictMode, tuple[Verdict, ...]]  # in the answers' order

    def counts(self, mode: VerdictMode) -> Counter[VerdictKind]:
        """How many answers got which kind."""
        return Counter(verdict.kind for verdict in self.verdicts[mode])

    def disputed(self, one: VerdictMode, other: VerdictMode) -> list[int]:
        """Places of the answers that are right in one mode and not in the other."""
        pairs = zip(self.verdicts[one], self.verdicts[other], strict=True)
        return [place for place, (a, b) in enumerate(pairs) if a.is_right != b.is_right]


def compare_modes(
    answers: Sequence[str],
    golds: Sequence[str],
    modes: Sequence[VerdictMode] = ALL_MODES,
    config: VerdictConfig | None = None,
) -> Agreement:
    """Grades every answer in every mode."""
    config = config or VerdictConfig()
    with Judge(config.model_copy(update={"modes": {mode: mode for mode in modes}})) as judge:
        judge.warm_up()
        verdicts = {mode: tuple(judge.judge_answers(answers, golds, [mode] * len(answers))) for mode in modes}
    return Agreement(answers=tuple(answers), golds=tuple(golds), verdicts=verdicts)


def report(agreement: Agreement) -> str:
    """Verdicts by mode, agreement of each pair (right or not), and examples of what they disagree on."""
    kinds, total = get_args(VerdictKind), len(agreement.answers)
    lines = [f"{total} answers", f"{'mode':<14}" + "".join(f"{kind:>12}" for kind in kinds)]
    for mode in agreement.verdicts:
        counts = agreement.counts(mode)
        lines.append(f"{mode:<14}" + "".join(f"{counts[kind]:>12}" for kind in kinds))
    for one, other in combinations(agreement.verdicts, 2):
        disputed = agreement.disputed(one, other)
        lines.append(f"{one} and {other} agree on {100 * (1 - len(disputed) / total):.1f}%")
        for place in disputed[:EXAMPLES_PER_PAIR]:
            kinds_of_both = " / ".join(agreement.verdicts[mode][place].kind for mode in (one, other))
            end = agreement.answers[place][-EXAMPLE_CHARS:]
            lines.append(f"    {kinds_of_both}: gold {agreement.golds[place][:EXAMPLE_CHARS]!r}, answer ...{end!r}")
    return "\n".join(lines)


def gold_lines(golds: Sequence[str], modes: Sequence[VerdictMode]) -> list[str]:
    """The ground truths that a mode can't take, each once: their answers have no verdict, or are right as text only."""
    distinct = {gold: place for place, gold in reversed(list(enumerate(golds)))}
    rows = [
        (f"answer {place}", gold, mode)
        for mode in modes
        for gold, place in sorted(distinct.items(), key=lambda x: x[1])
    ]
    problems = check_golds(rows)
    return [f"{len(problems)} ground truths that a mode can't take", *(f"    {problem}" for problem in problems)]


def read_answers(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Answers and ground truths of rollouts.jsonl and samples.jsonl files.

    Raises:
        ValueError: a file has neither.
    """
    answers, golds = [], []
    for file in files:
        before = len(answers)
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            texts = [a["text"] for a in record["answers"]] if "answers" in record else [record.get("answer")]
            if "ground_truth" in record and texts != [None]:
                answers += texts
                golds += [record["ground_truth"]] * len(texts)
        if len(answers) == before:
            raise ValueError(f"{file} has no answers; give a run's rollouts.jsonl or an evaluation's samples.jsonl")
    return answers, golds


def main() -> int:
    """The command line; exit status 0 done, 1 grading is broken, 2 wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m megatron_nft.verdict.agreement",
        description="Grades the same answers in several modes, and says where these agree.",
    )
    parser.add_argument("files", nargs="+", help="a run's rollouts.jsonl or an evaluation's samples.jsonl")
    parser.add_argument("--modes", nargs="+", choices=ALL_MODES, default=ALL_MODES, help="default: all")
    parser.add_argument("--workers", type=int, default=2, help="grading processes")
    arguments = parser.parse_args()
    try:
        answers, golds = read_answers(arguments.files)
        print(report(compare_modes(answers, golds, arguments.modes, VerdictConfig(workers=arguments.workers))))
        print("\n".join(gold_lines(golds, arguments.modes)))
    except JudgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
