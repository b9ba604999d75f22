"""What a page embeds of a run's records: columns by hand, thinned ones, groups by correct rate, and the tables."""

import math

from megatron_nft.observe import series
from megatron_nft.observe.evaluation_table import benchmark_rows, curve_ends, paper_rows, series_rows
from megatron_nft.observe.published import COLUMNS, ROWS
from megatron_nft.observe.series import columns, correct_rates
from megatron_nft.types import StepReport


def step(number, rates=(), **metrics):
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return StepReport(step=number, kind="step", time="", metrics=named, groups_by_correct_rate=tuple(rates))


def evaluation(number, **benchmarks):
    return StepReport(step=number, kind="evaluation", time="", benchmarks=benchmarks)


def test_columns_by_hand():
    records = [step(1, nft__loss=0.123456789), step(2, nft__loss=math.nan, rollout__rounds=3)]
    assert columns(records) == {
        "step": [1, 2],
        "metrics": {"nft/loss": [0.123457, None], "rollout/rounds": [None, 3]},
        "together": 1,
    }
    assert columns([]) == {"step": [], "metrics": {}, "together": 1}


def test_many_steps_are_taken_together_by_what_their_metrics_are(monkeypatch):
    monkeypatch.setattr(series, "MAX_POINTS", 2)
    records = [
        step(i, nft__loss=i, rollout__logprob_gap_max=-i, rollout__policy_version=i, train__updates=10 * i)
        for i in range(1, 6)
    ]
    records[1].metrics["nft/loss"] = math.inf  # left out, as a gap would be
    assert columns(records) == {
        "step": [3, 5],
        "metrics": {
            "nft/loss": [2.0, 4.5],  # mean of 1 and 3, of 4 and 5
            "rollout/logprob_gap_max": [-1, -4],  # max
            "rollout/policy_version": [1, 4],  # min
            "train/updates": [30, 50],  # last
        },
        "together": 3,
    }


def test_correct_rates_are_summed_where_steps_are_taken_together(monkeypatch):
    monkeypatch.setattr(series, "MAX_RATE_POINTS", 2)
    first, second = [1, 0, 0, 0, 2, 0, 0, 0, 0, 3], [0] * 9 + [5]
    records = [step(1, first), step(2, second), step(3), step(4, second)]  # step 3 is of an older version
    assert correct_rates(records) == {
        "step": [1, 4],
        "last": [2, 4],
        "counts": [[1, 0, 0, 0, 2, 0, 0, 0, 0, 8], second],
    }


def scores(greedy, average=None):
    its = {"eval/prompts": 30, "eval/greedy_accuracy": greedy, "eval/truncated_fraction": 0.05}
    its |= {"eval/greedy_accuracy_low": greedy - 0.1, "eval/greedy_accuracy_high": greedy + 0.1}
    if average is not None:
        its |= {"eval/k": 4, "eval/avg_at_k": average}
        its |= {"eval/avg_at_k_low": average - 0.05, "eval/avg_at_k_high": average + 0.05}
    return its


def test_a_line_a_benchmark():
    records = [evaluation(0, sums=scores(0.2, 0.15)), evaluation(9, sums=scores(0.4, 0.35), new=scores(0.5, 0.5))]
    assert benchmark_rows(records) == [
        ["benchmark", "prompts", "k", "avg@k, first", "last", "95% interval", "greedy, first", "last", "95% interval",
         "truncated"],
        ["sums", "30", "4", "15.0", "35.0", "30.0-40.0", "20.0", "40.0", "30.0-50.0", "5.0%"],
        ["new", "30", "4", "-", "50.0", "45.0-55.0", "-", "50.0", "40.0-60.0", "5.0%"],
    ]  # fmt: skip
    assert benchmark_rows([evaluation(0, sums=scores(0.2))])[0][:3] == ["benchmark", "prompts", "greedy, first"]
    assert benchmark_rows([]) == benchmark_rows([evaluation(0)]) == []


def test_the_published_curves_ends_stand_beside_a_run_on_all_six():
    names = ("aime24", "math500", "aime25", "amc23", "olympiad", "minerva")
    whole = [evaluation(0, **{name: scores(0.2) for name in names})]
    assert curve_ends(whole) == {"updates": 5120, "ends": {"7B NFT": (31.6, 51.7), "32B NFT": (29.6, 59.2)}}
    assert curve_ends([evaluation(0, aime24=scores(0.2))]) == curve_ends([]) == {}
    assert curve_ends([evaluation(0, **{name: scores(0.2) for name in names}, sums=scores(0.2))]) == {}
    assert [row[0] for row in series_rows(whole)][:2] == ["accuracy, %", "this run, step 0 (greedy)"]


def test_the_papers_table():
    assert paper_rows([evaluation(0, sums=scores(0.2))]) == []
    rows = paper_rows([evaluation(0, aime24=scores(0.1)), evaluation(9, aime24=scores(0.3), sums=scores(0.9))])
    assert rows[0] == ["accuracy, %", *COLUMNS, "average"]
    assert rows[1] == ["this run, step 0 (greedy)", "10.0", "-", "-", "-", "-", "-", "-"]
    assert rows[3][:3] == ["this run, step 9 (greedy)", "30.0", "-"] and rows[4][:3] == [
        "95% interval",
        "20.0-40.0",
        "",
    ]
    assert len(rows) == 5 + len(ROWS) and {len(row) for row in rows} == {8}
    whole = {column.lower(): scores(0.0, i / 10) for i, column in enumerate(COLUMNS)}
    assert paper_rows([evaluation(1, **whole)])[1] == [
        "this run, step 1", "0.0", "10.0", "20.0", "30.0", "40.0", "50.0", "25.0"
    ]  # fmt: skip
    mixed = whole | {"aime24": scores(0.3)}  # greedy only
    assert paper_rows([evaluation(1, **mixed)])[1][:3] == ["this run, step 1 (greedy)", "30.0", "0.0"], "one kind"
