"""The public metrics: every name with its unit, its meaning, and how values of many ranks and microbatches become one.

Actors, weight sync, sampling and evaluation report dicts of these names; `observe.report` records them and refuses any
other, so that a name can't drift between the code, metrics.jsonl and the report page. A new metric is a new line here,
or a `publish` in the file of the method whose it is.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_nft.observe.diagnosis import DIAGNOSIS
from megatron_nft.observe.throughput import length_metrics
from megatron_nft.types import RolloutGroup

Reduction = Literal["mean", "sum", "max", "min", "last"]
"""mean: weighted by answer tokens, so another split of the batch changes nothing; last: that of the latest part."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What one public number is."""

    name: str
    unit: str
    reduction: Reduction
    meaning: str


class UnknownMetricError(ValueError):
    """A metric was recorded under a name that is not in METRICS."""


_QUANTILES = {"p10": "10th percentile", "p50": "median", "p90": "90th percentile", "p99": "99th percentile"}
_WHOSE = {"answer": "all answers", "right": "right answers", "wrong": "answers graded wrong, or cut"}
_LENGTHS: tuple[tuple[str, str, Reduction, str], ...] = tuple(
    (f"rollout/{whose}_tokens_{quantile}", "tokens", "mean", f"{words} of the lengths of {of}")
    for whose, of in _WHOSE.items()
    for quantile, words in _QUANTILES.items()
    if whose == "answer" or quantile != "p99"
)
_PLACES = {"gpu": "torch's allocations on the fullest GPU", "host": "the largest process's host memory"}
_PHASES = {
    "rollout": "while engines sample",
    "score": "while the actor scores",
    "train": "while the actor trains",
    "checkpoint": "while the actor's state is copied for a checkpoint",
    "sync": "while weights are sent and loaded, by actor and engines",
}
_MEMORY: tuple[tuple[str, str, Reduction, str], ...] = tuple(
    (f"memory/{place}_{phase}_gib", "GiB", "max", f"peak of {of} {when}")
    for place, of in _PLACES.items()
    for phase, when in _PHASES.items()
)
_ROWS: tuple[tuple[str, str, Reduction, str], ...] = (
    ("nft/loss", "nats/token", "mean", "the minimised loss, as reduced over the optimizer mini-batch"),
    ("nft/loss_right", "nats/token", "mean", "the part of nft/loss that comes from right answers"),
    ("nft/loss_wrong", "nats/token", "mean", "the part of nft/loss that comes from wrong answers"),
    ("nft/ratio_mean", "ratio", "mean", "likelihood ratio now / before the step, over answer tokens"),
    ("nft/ratio_max", "ratio", "max", "largest likelihood ratio of any answer token"),
    ("nft/clamped_fraction", "fraction", "mean", "share of wrong answers' tokens whose implicit ratio was clamped"),
    (
        "nft/clipped_fraction",
        "fraction",
        "mean",
        "share of answer tokens whose ratio earns nothing more (GRPO and kin)",
    ),
    *DIAGNOSIS,
    ("nft/kl", "nats/token", "mean", "estimate of KL(policy || reference), with algorithm.kl_weight"),
    ("nft/entropy", "nats/token", "mean", "entropy of the policy at answer tokens, with observe.entropy"),
    ("nft/correct_rate", "fraction", "mean", "share of right answers among all graded ones, unmixed groups included"),
    ("train/step", "steps", "last", "rollout steps so far, a tracker's first axis"),
    ("train/updates", "updates", "last", "optimizer updates so far, left-out ones not counted; the other axis"),
    ("actor/grad_norm", "norm", "mean", "global gradient norm before clipping, mean over the step's updates"),
    ("actor/clipped_updates", "updates", "sum", "updates whose gradient was longer than optimizer.grad_clip"),
    ("actor/learning_rate", "1/update", "last", "learning rate of the step's last update"),
    ("actor/nonfinite_updates", "updates", "sum", "updates left out because their gradient was not finite"),
    ("actor/tokens", "tokens", "sum", "prompt and answer tokens trained on"),
    ("actor/experts_differ", "fraction", "mean", "replayed choices of an expert that the actor would not make itself"),
    ("actor/experts_missing", "fraction", "max", "tokens whose experts were lost with a node, and so not replayed"),
    ("rollout/answers", "answers", "sum", "answers sampled, unmixed groups included"),
    ("rollout/answer_tokens_mean", "tokens", "mean", "mean length of an answer"),
    *_LENGTHS,
    ("rollout/truncated_fraction", "fraction", "mean", "share of answers cut at rollout.max_answer_tokens"),
    ("rollout/groups_mixed", "groups", "sum", "groups with right and wrong answers; only these are trained on"),
    ("rollout/groups_all_right", "groups", "sum", "groups without a wrong answer, dropped"),
    ("rollout/groups_all_wrong", "groups", "sum", "groups without a right answer, dropped"),
    (
        "rollout/groups_surplus",
        "groups",
        "sum",
        'mixed groups beyond train.groups_per_step; with rollout.tail = "wait", all asked for after the last of those',
    ),
    (
        "rollout/groups_cut",
        "groups",
        "sum",
        "groups under way when enough were mixed, with rollout.tail: dropped or kept",
    ),
    (
        "rollout/cut_tokens_mean",
        "tokens",
        "mean",
        "mean length so far of the unfinished answers that were dropped then",
    ),
    ("rollout/rounds", "rounds", "sum", "sampling rounds until enough groups were mixed"),
    ("rollout/logprob_gap_mean", "nats/token", "mean", "|engine log-prob - actor log-prob|, mean over answer tokens"),
    ("rollout/logprob_gap_max", "nats/token", "max", "|engine log-prob - actor log-prob|, largest of any answer token"),
    ("rollout/logprob_gap_p99", "nats/token", "max", "|engine log-prob - actor log-prob|, 99th percentile of tokens"),
    (
        "rollout/unreplayed_gap_mean",
        "nats/token",
        "mean",
        "rollout/logprob_gap_mean as it would be without routing replay, on each replica's first microbatch",
    ),
    ("rollout/unreplayed_gap_p99", "nats/token", "max", "the same of rollout/logprob_gap_p99"),
    (
        "rollout/importance_capped_fraction",
        "fraction",
        "mean",
        "share of answer tokens cut at algorithm.importance_cap",
    ),
    ("engine/running_mean", "answers", "mean", "answers that an engine decodes at a time, mean over decode steps"),
    (
        "engine/waiting_mean",
        "answers",
        "mean",
        "answers that an engine has but hasn't begun, mean over decode steps",
    ),
    ("engine/kv_use_mean", "fraction", "mean", "share of an engine's KV cache in use, mean over decode steps"),
    ("engine/kv_use_max", "fraction", "max", "the same at its fullest, of any engine"),
    ("rollout/policy_version", "syncs", "min", "weight syncs behind the oldest sampled answer"),
    ("async/staleness_mean", "syncs", "mean", "weight syncs between the policy that sampled and the one that trains"),
    (
        "async/staleness_max",
        "syncs",
        "max",
        "that of the oldest token trained on; at most rollout.max_staleness",
    ),
    ("async/queue_groups", "groups", "last", "mixed groups that were ready beyond the step's own"),
    ("async/groups_under_way", "groups", "last", "groups that engines or graders had when the step got its own"),
    ("async/groups_carried", "groups", "sum", "trained groups with answers that were under way during a weight sync"),
    ("async/groups_dropped", "groups", "sum", "groups that others overtook until they were too old to be trained on"),
    ("async/groups_restarted", "groups", "sum", "groups under way that a weight sync sent back to their prompt"),
    ("async/engine_idle_s", "s", "max", "engines had nothing to do, mean over engines; syncs and evaluations left out"),
    ("verdict/right", "answers", "sum", "answers graded right and not truncated"),
    ("verdict/wrong", "answers", "sum", "answers graded wrong, or right but truncated"),
    ("verdict/unparsable", "answers", "sum", "answers in which no final answer was found"),
    ("verdict/timeout", "answers", "sum", "answers whose grading passed verdict.deadline_s, twice"),
    ("verdict/error", "answers", "sum", "answers on which the grader failed, or whose ground truth can't be read"),
    (
        "verdict/left_out",
        "answers",
        "sum",
        "answers that left their groups: neither right nor wrong, for want of a grade",
    ),
    ("verdict/by_evaluation", "answers", "sum", "right only after the grader computed: a rise may be copied formulas"),
    ("verdict/by_rounding", "answers", "sum", "right as a rounded decimal of an exact ground truth"),
    ("verdict/by_omission", "answers", "sum", "right with a unit, a percent sign or a base left out or added"),
    ("weights/bytes", "bytes", "sum", "bytes sent to the engines"),
    ("weights/buckets", "buckets", "sum", "buckets sent to the engines"),
    ("weights/gib_per_s", "GiB/s", "sum", "weight-sync throughput"),
    ("weights/announce_s", "s", "sum", "weight sync: engines open an update"),
    ("weights/gather_s", "s", "sum", "weight sync: waited for the actor's buckets"),
    ("weights/load_s", "s", "sum", "weight sync: engines load buckets"),
    ("weights/finish_s", "s", "sum", "weight sync: engines check, prepare and stamp the new weights"),
    ("weights/canary_gap", "nats/token", "max", "|engine log-prob - actor log-prob| of the canary, worst engine"),
    ("time/rollout_s", "s", "max", "sampling answers"),
    ("time/verdict_s", "s", "max", "grading answers"),
    ("time/pack_s", "s", "max", "packing sequences into microbatches"),
    ("time/score_s", "s", "max", "the actor's log-probs before the update"),
    ("time/train_s", "s", "max", "forward, backward and optimizer updates"),
    ("time/checkpoint_s", "s", "max", "copying the state for a checkpoint; all of saving, if not in background"),
    ("time/sync_s", "s", "max", "sending the weights to the engines"),
    ("time/wait_s", "s", "max", "asynchronous rollouts: the trainer waited for groups"),
    ("time/evaluate_s", "s", "max", "held-out evaluation"),
    ("time/step_s", "s", "max", "the whole step, stages and what lies between them"),
    (
        "perf/rollout_tokens_per_s",
        "tokens/s",
        "sum",
        "answer tokens sampled per second of time/rollout_s; of the step, where engines are ahead",
    ),
    ("perf/rollout_tokens_per_s_per_gpu", "tokens/s", "mean", "that per GPU of the engines (on a CPU: process)"),
    ("perf/train_tokens_per_s", "tokens/s", "sum", "actor/tokens per second of time/train_s"),
    ("perf/train_tokens_per_s_per_gpu", "tokens/s", "mean", "that per GPU of the actor (on a CPU: process)"),
    ("perf/train_tflops_per_gpu", "TFLOP/s", "mean", "model operations of the updates, per second and GPU"),
    (
        "perf/mfu",
        "fraction",
        "mean",
        "that as a share of the peak in plan/hardware.toml (bf16; on a CPU, of cores)",
    ),
    (
        "perf/gpu_hours",
        "hours",
        "last",
        "of all GPUs so far, starts and earlier attempts too (on a CPU: of processes)",
    ),
    *_MEMORY,
    ("memory/host_driver_gib", "GiB", "max", "host memory of the driver at the step's end"),
    ("eval/greedy_accuracy", "fraction", "mean", "share of held-out prompts answered right at temperature 0"),
    ("eval/greedy_accuracy_low", "fraction", "mean", "lower end of its 95% interval (Wilson), over prompts"),
    ("eval/greedy_accuracy_high", "fraction", "mean", "upper end of its 95% interval (Wilson)"),
    (
        "eval/average",
        "fraction",
        "mean",
        "mean of the benchmarks' accuracies, each weighing the same: of sampled answers, or else of greedy ones",
    ),
    ("eval/average_low", "fraction", "mean", "lower end of the 95% bootstrap interval of eval/average"),
    ("eval/average_high", "fraction", "mean", "upper end of the 95% bootstrap interval of eval/average"),
    ("eval/avg_at_k", "fraction", "mean", "mean correct rate of the sampled answers to a prompt, over all prompts"),
    ("eval/avg_at_k_low", "fraction", "mean", "lower end of the 95% bootstrap interval of eval/avg_at_k, over prompts"),
    ("eval/avg_at_k_high", "fraction", "mean", "upper end of the 95% bootstrap interval of eval/avg_at_k"),
    ("eval/pass_at_k", "fraction", "mean", "share of prompts with a right one among k answers (unbiased estimate)"),
    ("eval/pass_at_k_low", "fraction", "mean", "lower end of the 95% bootstrap interval of eval/pass_at_k"),
    ("eval/pass_at_k_high", "fraction", "mean", "upper end of the 95% bootstrap interval of eval/pass_at_k"),
    ("eval/maj_at_k", "fraction", "mean", "share of prompts whose most frequent answer of k is right"),
    ("eval/maj_at_k_low", "fraction", "mean", "lower end of the 95% bootstrap interval of eval/maj_at_k"),
    ("eval/maj_at_k_high", "fraction", "mean", "upper end of the 95% bootstrap interval of eval/maj_at_k"),
    ("eval/k", "answers", "last", "sampled answers per prompt behind avg@k, pass@k and maj@k"),
    ("eval/answer_tokens_mean", "tokens", "mean", "mean length of an evaluation's answers"),
    ("eval/prompts_too_long", "prompts", "sum", "prompts beyond data.max_prompt_tokens; they count as wrong"),
    ("eval/truncated_fraction", "fraction", "mean", "share of held-out answers cut at rollout.max_answer_tokens"),
    ("eval/prompts", "prompts", "sum", "held-out prompts behind the accuracies"),
)

METRICS: dict[str, Metric] = {
    name: Metric(name=name, unit=unit, reduction=reduction, meaning=meaning) for name, unit, reduction, meaning in _ROWS
}

STAGES: tuple[str, ...] = tuple(
    name.removeprefix("time/").removesuffix("_s")
    for name in METRICS
    if name.startswith("time/") and name != "time/step_s"
)
"""The stages of a step in their order, each timed as time/<stage>_s."""


def publish(name: str, unit: str, reduction: Reduction, meaning: str) -> None:
    """Makes one more metric public, in this process: for a method (nft/methods) with a metric of its own.

    Raises:
        ValueError: the name is another metric's.
    """
    metric = Metric(name=name, unit=unit, reduction=reduction, meaning=meaning)
    if METRICS.setdefault(name, metric) != metric:
        raise ValueError(f"{name!r} is public already, as {METRICS[name].meaning!r}; choose another name")


RATE_BINS = 10
"""Groups are counted by correct rate: none right, 8 equal parts of what is between, all right."""


def check_names(names: Iterable[str]) -> None:
    """Raises UnknownMetricError on the first name that is not public."""
    for name in names:
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "a new metric needs a line in observe/metrics.py"
            raise UnknownMetricError(f"unknown metric {name!r}; {hint}")


def reduce_metrics(parts: Sequence[Mapping[str, float]], num_tokens: Sequence[float]) -> dict[str, float]:
    """One dict out of many: the metrics of microbatches, ranks or updates, in the order in which they were made.

    Parts need not all have the same names. A part without tokens (ranks run equally many microbatches, some empty) has
    no say in means and extremes. NaN stays visible: it is never averaged away.

    Args:
        parts: metrics of each part.
        num_tokens: answer tokens behind each part, the weights of the means.
    """
    if len(parts) != len(num_tokens):
        raise ValueError(f"{len(parts)} parts but {len(num_tokens)} token counts; give one count per part")
    names = list(dict.fromkeys(name for part in parts for name in part))
    check_names(names)
    return {name: _reduce(name, parts, num_tokens) for name in names}


def _reduce(name: str, parts: Sequence[Mapping[str, float]], num_tokens: Sequence[float]) -> float:
    reduction = METRICS[name].reduction
    if reduction in ("sum", "last"):
        values = [part[name] for part in parts if name in part]
        return float(np.sum(values)) if reduction == "sum" else float(values[-1])
    pairs = [(part[name], count) for part, count in zip(parts, num_tokens, strict=True) if name in part and count > 0]
    if not pairs:
        return float("nan")
    values, counts = zip(*pairs, strict=True)
    if reduction == "mean":
        return float(np.average(values, weights=counts))
    return float(np.max(values) if reduction == "max" else np.min(values))


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """The rollout/ and verdict/ metrics and nft/correct_rate of all sampled groups, the unmixed ones included.

    A truncated answer counts as wrong here as in training, whatever the grader said of it.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    num_right = sum(sum(group.rights) for group in groups)
    kinds = Counter(verdict.kind for group in groups for verdict in group.verdicts)
    graded = [group.graded for group in groups]
    num_graded = sum(len(group.rollouts) for group in graded)
    rules = Counter(rule for g in groups for v in g.verdicts if v.is_right for rule in set(v.rule.split(", ")))
    metrics: dict[str, float] = {
        "rollout/answers": len(rollouts),
        "rollout/groups_mixed": sum(group.is_mixed for group in groups),
        "rollout/groups_all_right": sum(all(group.rights) for group in graded if group.rollouts),
        "rollout/groups_all_wrong": sum(not any(group.rights) for group in graded),
        "verdict/right": num_right,
        "verdict/wrong": kinds["wrong"] + kinds["right"] - num_right,
        "verdict/unparsable": kinds["unparsable"],
        "verdict/timeout": kinds["timeout"],
        "verdict/error": kinds["error"],
        "verdict/left_out": len(rollouts) - num_graded,
        "verdict/by_evaluation": rules["evaluated"],
        "verdict/by_rounding": rules["rounded"],
        "verdict/by_omission": sum(count for rule, count in rules.items() if rule.endswith((" left out", " added"))),
    }
    if rollouts:
        metrics |= length_metrics(groups) | {
            "nft/correct_rate": num_right / (num_graded or 1),
            "rollout/answer_tokens_mean": sum(len(r.token_ids_A) for r in rollouts) / len(rollouts),
            "rollout/truncated_fraction": sum(r.truncated for r in rollouts) / len(rollouts),
            "rollout/policy_version": min(r.policy_version for r in rollouts),
        }
    if mixed := [group.correct_rate for group in graded if group.is_mixed]:
        metrics["rollout/mixed_correct_rate"] = sum(mixed) / len(mixed)
    return metrics


def count_by_correct_rate(groups: Sequence[RolloutGroup]) -> list[int]:
    """Groups in each of RATE_BINS bins: the first has those without a right answer, the last those without a wrong."""
    counts = [0] * RATE_BINS
    for group in groups:
        num_right, size = sum(group.rights), len(group.graded.rollouts) or 1
        middle = 1 + (RATE_BINS - 2) * num_right // size
        counts[0 if num_right == 0 else RATE_BINS - 1 if num_right == size else middle] += 1
    return counts
