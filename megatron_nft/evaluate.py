"""Held-out accuracy: greedy, and avg@k of sampled answers.

Engines, a judge and prompts come in; eval/ metrics and the judged greedy answers go out. Called by train.py before,
during and after a run.
"""

from collections.abc import Callable, Sequence
from typing import Any

from megatron_nft.config import Config
from megatron_nft.rollout.sample import Sampling, sample_groups
from megatron_nft.types import Prompt, RolloutGroup
from megatron_nft.verdict.judge import Judge


def evaluate(
    engines: Any,
    judge: Judge,
    prompts: Sequence[Prompt],
    config: Config,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, float], list[RolloutGroup]]:
    """Answers every prompt greedily, and `evaluate.samples` times with sampling; grades; averages.

    The sampled answers have the same seed in every evaluation of a run, so evaluations differ by the weights only.
    """
    greedy = Sampling(group_size=1, temperature=0.0, max_answer_tokens=config.rollout.max_answer_tokens, seed=0)
    groups = judge.judge(sample_groups(engines, list(prompts), greedy, on_progress))
    metrics = {
        "eval/prompts": len(prompts),
        "eval/greedy_accuracy": _mean(group.correct_rate for group in groups),
        "eval/truncated_fraction": _mean(group.rollouts[0].truncated for group in groups),
    }
    if config.evaluate.samples:
        sampling = Sampling(
            group_size=config.evaluate.samples,
            temperature=config.evaluate.temperature,
            top_p=config.evaluate.top_p,
            max_answer_tokens=config.rollout.max_answer_tokens,
            seed=config.run.seed,
        )
        sampled = judge.judge(sample_groups(engines, list(prompts), sampling, on_progress))
        metrics["eval/avg_at_k"] = _mean(group.correct_rate for group in sampled)
    return metrics, groups


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
