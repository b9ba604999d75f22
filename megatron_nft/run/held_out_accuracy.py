"""A run's held-out accuracies, of all prompts and by benchmark: graded answers in, metrics out. Pure. Called by
held_out.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_nft.data.benchmarks import Benchmark
from megatron_nft.evaluation.accuracy import average_of, bootstrap_means, interval, wilson_interval
from megatron_nft.types import Prompt, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What an evaluation gives."""

    metrics: dict[str, float]
    samples: list[RolloutGroup]  # the greedy answers, or else the sampled ones
    benchmarks: dict[str, dict[str, float]]  # file's name -> its own metrics


def held_out_of(
    benchmarks: Sequence[Benchmark], greedy: Sequence[RolloutGroup], sampled: Sequence[RolloutGroup], seed: int
) -> HeldOut:
    """Accuracies of graded answers.

    Args:
        greedy, sampled: groups of one answer to each prompt, and of `evaluate.samples`; none of either, or of some
            benchmarks, where they weren't asked for.
        seed: of the intervals' bootstrap.
    """
    parts = {
        benchmark.name: _Part(
            greedy=[group for group in greedy if benchmark_of(group.prompt) == benchmark.name],
            sampled=[group for group in sampled if benchmark_of(group.prompt) == benchmark.name],
            num_too_long=benchmark.num_too_long,
        )
        for benchmark in benchmarks
    }
    are_sampled = all(part.sampled for part in parts.values())  # else only some are, by evaluate.samples_of
    whole = _Part(
        greedy=greedy,
        sampled=sampled if are_sampled else [],
        num_too_long=sum(part.num_too_long for part in parts.values()),
    )
    return HeldOut(
        metrics=_metrics(whole, seed) | _average(parts, seed, are_sampled=are_sampled),
        samples=list(greedy or sampled),
        benchmarks={name: _metrics(part, seed) for name, part in parts.items()},
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Graded answers of a benchmark, or of all of them."""

    greedy: Sequence[RolloutGroup]
    sampled: Sequence[RolloutGroup]
    num_too_long: int  # prompts that were not asked, and count as wrong

    @property
    def num_prompts(self) -> int:
        return len(self.greedy or self.sampled) + self.num_too_long

    def rates(self, groups: Sequence[RolloutGroup]) -> list[float]:
        """Of right answers, by prompt."""
        return [group.correct_rate for group in groups] + [0.0] * self.num_too_long


def benchmark_of(prompt: Prompt) -> str:
    """The name of its file, without the ending."""
    return prompt.prompt_id.rpartition("/")[0]


def _metrics(part: _Part, seed: int) -> dict[str, float]:
    """Accuracies with their 95% intervals, under their public names."""
    greedy, sampled, number = part.greedy, part.sampled, part.num_prompts
    metrics: dict[str, float] = {"eval/prompts": number, "eval/prompts_too_long": part.num_too_long}
    if greedy:
        num_right = sum(sum(group.rights) for group in greedy)
        low, high = wilson_interval(num_right, number)
        metrics |= {"eval/greedy_accuracy": num_right / number}
        metrics |= {"eval/greedy_accuracy_low": low, "eval/greedy_accuracy_high": high}
    cut = [rollout.truncated for group in greedy or sampled for rollout in group.rollouts]
    metrics["eval/truncated_fraction"] = sum(cut) / len(cut)
    if sampled:
        rates = part.rates(sampled)
        low, high = interval(bootstrap_means(rates, seed))
        if len(counts := {len(group.rollouts) for group in sampled}) == 1:
            metrics["eval/k"] = counts.pop()
        metrics["eval/avg_at_k"] = sum(rates) / len(rates)
        metrics |= {"eval/avg_at_k_low": low, "eval/avg_at_k_high": high}
    return metrics


def _average(parts: Mapping[str, _Part], seed: int, *, are_sampled: bool) -> dict[str, float]:
    """The mean of several benchmarks, each weighing the same: of the sampled answers, or else of the greedy ones."""
    if len(parts) < 2:
        return {}
    rates = {name: part.rates(part.sampled if are_sampled else part.greedy) for name, part in parts.items()}
    mean, low, high = average_of(rates, seed)
    return {"eval/average": mean, "eval/average_low": low, "eval/average_high": high}
