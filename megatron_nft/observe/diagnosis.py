"""Metrics by which one sees what a method, or an engine, does to a run: rows of the table in observe/metrics.py."""

from typing import Literal

DIAGNOSIS: tuple[tuple[str, str, Literal["mean", "sum", "last"], str], ...] = (
    ("nft/clipped_right_fraction", "fraction", "mean", "the same share of right answers' tokens"),
    ("nft/clipped_wrong_fraction", "fraction", "mean", "the same share of wrong answers' tokens"),
    ("nft/mass_up", "1", "mean", "sum of the loss's slopes that push answer tokens up, as reduced: advantage by sign"),
    ("nft/mass_down", "1", "mean", "sum of those that push answer tokens down"),
    ("nft/logprob_right", "nats/token", "last", "mean log-prob of right answers' tokens, at the step's last update"),
    ("nft/logprob_wrong", "nats/token", "last", "mean log-prob of wrong answers' tokens, at the step's last update"),
    ("nft/moved_right", "nats/token", "last", "that of right answers, less that before the step; falls: displacement"),
    ("nft/moved_wrong", "nats/token", "last", "that of wrong answers, less that before the step"),
    ("nft/truncated_fraction", "fraction", "mean", "share of answer tokens whose weight a correction's cap has cut"),
    ("nft/masked_fraction", "fraction", "mean", "share of answer tokens whose weight a correction's mask made 0"),
    ("nft/rejected_fraction", "fraction", "mean", "share of answer tokens that a correction left out of the mean"),
    ("rollout/mixed_correct_rate", "fraction", "mean", "mean correct rate of the mixed groups"),
    (
        "rollout/gap_signed",
        "nats/token",
        "mean",
        "actor log-prob - engine log-prob, mean: minus k1 of KL(engine || actor)",
    ),
    ("rollout/gap_kl", "nats/token", "mean", "KL(engine || actor), the k3 estimate: what observe.gap_bound bounds"),
    ("rollout/gap_ess_tokens", "fraction", "mean", "effective sample size of tokens' importance weights, by tokens"),
    ("rollout/gap_ess_answers", "fraction", "mean", "effective sample size of answers' importance weights, by answers"),
    ("rollout/gap_quarter_1", "nats/token", "mean", "logprob_gap_mean in the first quarter of the longest answer"),
    ("rollout/gap_quarter_2", "nats/token", "mean", "logprob_gap_mean in its second quarter"),
    ("rollout/gap_quarter_3", "nats/token", "mean", "logprob_gap_mean in its third quarter"),
    ("rollout/gap_quarter_4", "nats/token", "mean", "logprob_gap_mean in its last quarter"),
    ("rollout/gap_alarms", "steps", "sum", "1 where rollout/gap_kl was beyond observe.gap_bound, or a temperature's"),
    ("rollout/top_mass", "fraction", "mean", "probability that the engine's rollout.top_logprobs tokens have together"),
)
