"""The metric table, the reductions, and the metrics of sampled groups, against numbers counted by hand."""

import math
from dataclasses import replace

import pytest

from megatron_nft.observe.metrics import (
    METRICS,
    STAGES,
    UnknownMetricError,
    check_names,
    count_by_correct_rate,
    reduce_metrics,
    rollout_metrics,
)

AREAS = {"nft", "rollout", "train", "verdict", "actor", "async", "weights", "time", "perf", "memory", "engine", "eval"}


def test_every_metric_is_in_a_known_area_and_explained():
    assert {name.partition("/")[0] for name in METRICS} == AREAS
    assert all(metric.unit and metric.meaning for metric in METRICS.values())


def test_stages_are_the_timed_ones_without_the_step_itself():
    assert STAGES == ("rollout", "verdict", "pack", "score", "train", "checkpoint", "sync", "wait", "evaluate")


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(UnknownMetricError, match="unknown metric 'nft/los'; did you mean 'nft/loss'"):
        check_names(["nft/los"])
    with pytest.raises(UnknownMetricError, match=r"needs a line in observe/metrics\.py"):
        reduce_metrics([{"zzz": 1.0}], [1])


def test_means_are_weighted_by_tokens():
    assert reduce_metrics([{"nft/loss": 1.0}, {"nft/loss": 4.0}], [30, 10]) == {"nft/loss": 1.75}


def test_sums_extremes_and_the_last():
    first = {"actor/tokens": 10, "nft/ratio_max": 3.0, "rollout/policy_version": 4, "actor/learning_rate": 1e-6}
    second = {"actor/tokens": 5, "nft/ratio_max": 2.0, "rollout/policy_version": 3, "actor/learning_rate": 2e-6}
    assert reduce_metrics([first, second], [1, 1]) == {
        "actor/tokens": 15,
        "nft/ratio_max": 3.0,
        "rollout/policy_version": 3,
        "actor/learning_rate": 2e-6,
    }


def test_an_empty_part_has_no_say_in_means_and_extremes():
    empty = {"nft/loss": math.nan, "nft/ratio_max": math.nan, "actor/tokens": 0}
    full = {"nft/loss": 2.0, "nft/ratio_max": 1.5, "actor/tokens": 7}
    assert reduce_metrics([empty, full], [0, 7]) == full


def test_nan_of_a_real_part_is_not_averaged_away():
    assert math.isnan(reduce_metrics([{"nft/loss": math.nan}, {"nft/loss": 1.0}], [1, 9])["nft/loss"])


def test_splitting_a_batch_changes_nothing():
    parts = [{"nft/loss": value} for value in (1.0, 2.0, 6.0, 3.0)]
    tokens = [1, 2, 3, 4]
    halves = [reduce_metrics(parts[:2], tokens[:2]), reduce_metrics(parts[2:], tokens[2:])]
    assert reduce_metrics(halves, [3, 7])["nft/loss"] == pytest.approx(reduce_metrics(parts, tokens)["nft/loss"])


def test_one_token_count_per_part():
    with pytest.raises(ValueError, match="2 parts but 1 token counts"):
        reduce_metrics([{"nft/loss": 1.0}, {"nft/loss": 2.0}], [1])


def test_rollout_metrics_by_hand(make_group):
    groups = [
        make_group("right", "wrong", "unparsable"),
        make_group("right", "right", version=2),
        make_group("timeout", "error", "right+cut", "timeout"),  # a truncated answer counts as wrong
    ]
    assert rollout_metrics(groups) == {
        "rollout/answers": 9,
        "rollout/groups_mixed": 1,
        "rollout/groups_all_right": 1,
        "rollout/groups_all_wrong": 1,
        "verdict/right": 3,
        "verdict/wrong": 2,
        "verdict/unparsable": 1,
        "verdict/timeout": 2,
        "verdict/error": 1,
        "verdict/left_out": 3,
        "verdict/by_evaluation": 0,
        "verdict/by_rounding": 0,
        "verdict/by_omission": 0,
        "nft/correct_rate": 3 / 6,
        "rollout/answer_tokens_mean": (60 + 30 + 100) / 9,
        "rollout/mixed_correct_rate": 1 / 3,
        "rollout/answer_tokens_p10": 10,
        "rollout/answer_tokens_p50": 20,
        "rollout/answer_tokens_p90": 32,
        "rollout/answer_tokens_p99": pytest.approx(39.2),
        "rollout/right_tokens_p10": 10,  # of 10, 10, 20
        "rollout/right_tokens_p50": 10,
        "rollout/right_tokens_p90": 18,
        "rollout/wrong_tokens_p10": 22,  # of 20, 30, and the truncated 30
        "rollout/wrong_tokens_p50": 30,
        "rollout/wrong_tokens_p90": 30,
        "rollout/truncated_fraction": 1 / 9,
        "rollout/policy_version": 2,
    }


def test_right_answers_are_counted_by_the_rule_that_decided(make_group):
    group = make_group("right", "right", "right", "wrong", "right")
    rules = ("evaluated, unit left out", "rounded", "same text", "not evaluated: sum", "base left out")
    verdicts = tuple(replace(v, rule=rule) for v, rule in zip(group.verdicts, rules, strict=True))
    metrics = rollout_metrics([replace(group, verdicts=verdicts)])
    assert [metrics[f"verdict/by_{rule}"] for rule in ("evaluation", "rounding", "omission")] == [1, 1, 2]


def test_rollout_metrics_of_nothing_are_counts_without_means():
    assert set(rollout_metrics([]).values()) == {0}


def test_groups_are_counted_by_correct_rate(make_group):
    right_of_8 = [0, 1, 4, 7, 8, 8]
    groups = [make_group(*["right"] * n, *["wrong"] * (8 - n)) for n in right_of_8] + [make_group("right+cut", "wrong")]
    # none right; (0, 1/8), [1/8, 2/8), ... [7/8, 1); all right. What was cut is wrong.
    assert count_by_correct_rate(groups) == [2, 0, 1, 0, 0, 1, 0, 0, 1, 2]
    assert count_by_correct_rate([]) == [0] * 10
