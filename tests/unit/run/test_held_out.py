"""What an evaluation asks of engines, and what it makes of their answers. Real ones: tests/e2e/test_held_out.py."""

import numpy as np
import pytest

from megatron_nft.config import RecipeError, load_config
from megatron_nft.data.benchmarks import Benchmark
from megatron_nft.evaluation.accuracy import wilson_interval
from megatron_nft.run import held_out
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict

CONFIG = load_config(
    "launch/recipes/quickstart.toml",
    ["evaluate.samples=4", "evaluate.temperature=0.6", "evaluate.top_p=0.7", "rollout.temperature=1.0", "run.seed=3"],
)
NUM_RIGHT = {"easy/0": (1, 4), "easy/1": (1, 2), "hard/0": (0, 1)}
"""Of the greedy answer, and of the four that are sampled."""
PROMPTS = [
    Prompt(prompt_id=name, text="", token_ids_P=np.zeros(1, np.int32), ground_truth="", data_source="")
    for name in NUM_RIGHT
]


def benchmark(name, num_too_long=0):
    prompts = tuple(prompt for prompt in PROMPTS if prompt.prompt_id.startswith(name))
    return Benchmark(
        name=name, data_source="", prompts=prompts, num_too_long=num_too_long, num_without_answer=0, repeats=1
    )


BENCHMARKS = [benchmark("easy"), benchmark("hard")]


def evaluate_config(**change):
    return CONFIG.model_copy(update={"evaluate": CONFIG.evaluate.model_copy(update=change)})


class Judge:
    """Finds the first answers of each prompt right."""

    def judge(self, groups):
        return [
            RolloutGroup(
                prompt=group.prompt,
                rollouts=group.rollouts,
                verdicts=tuple(
                    Verdict(kind="right" if i < NUM_RIGHT[group.prompt.prompt_id][len(group.rollouts) > 1] else "wrong")
                    for i in range(len(group.rollouts))
                ),
            )
            for group in groups
        ]


@pytest.fixture
def asked(monkeypatch):
    """The requests of each evaluation."""
    found = []

    def stream_answers(engines, requests, rollout, *, refill):
        found.append(requests)
        for request in reversed(requests):  # in whatever order they end
            yield request.request_id, answered(request)

    monkeypatch.setattr(held_out, "stream_answers", stream_answers)
    return found


def answered(request):
    answer = Rollout(text="", token_ids_A=np.zeros(2, np.int32), engine_logprobs_A=np.zeros(2, np.float32),
                     truncated=False, policy_version=0)  # fmt: skip
    return RolloutGroup(prompt=request.prompt, rollouts=(answer,) * request.sampling.group_size)


def test_accuracies_are_of_all_prompts_and_of_each_benchmark(asked):
    result = held_out.evaluate(None, Judge(), BENCHMARKS, CONFIG)
    low, high = wilson_interval(2, 3)
    assert result.metrics["eval/greedy_accuracy"] == 2 / 3 and result.metrics["eval/prompts"] == 3
    assert (result.metrics["eval/greedy_accuracy_low"], result.metrics["eval/greedy_accuracy_high"]) == (low, high)
    assert result.metrics["eval/avg_at_k"] == pytest.approx((4 + 2 + 1) / 12) and result.metrics["eval/k"] == 4
    of = result.benchmarks
    assert [(of[name]["eval/prompts"], of[name]["eval/greedy_accuracy"]) for name in of] == [(2, 1.0), (1, 0.0)]
    assert [of[name]["eval/avg_at_k"] for name in ("easy", "hard")] == [0.75, 0.25]
    assert [len(group.rollouts) for group in result.samples] == [1, 1, 1], "the greedy ones"


def test_several_benchmarks_weigh_the_same_however_large_they_are(asked):
    metrics = held_out.evaluate(None, Judge(), BENCHMARKS, CONFIG).metrics
    assert metrics["eval/average"] == pytest.approx((0.75 + 0.25) / 2)
    assert metrics["eval/average"] != pytest.approx(metrics["eval/avg_at_k"])
    assert metrics["eval/average_low"] <= metrics["eval/average"] <= metrics["eval/average_high"]
    assert "eval/average" not in held_out.evaluate(None, Judge(), BENCHMARKS[:1], CONFIG).metrics, "of one benchmark"


def test_each_benchmark_is_sampled_as_often_as_the_recipe_says(asked):
    """Many answers first; no greedy ones, if they aren't asked for."""
    config = evaluate_config(samples=2, samples_of={"hard": 4}, greedy=False)
    result = held_out.evaluate(None, Judge(), BENCHMARKS, config)
    (requests,) = asked
    assert [(r.sampling.group_size, r.prompt.prompt_id, r.sampling.temperature) for r in requests] == [
        (4, "hard/0", 0.6), (2, "easy/0", 0.6), (2, "easy/1", 0.6),
    ]  # fmt: skip
    assert [(group.prompt.prompt_id, len(group.rollouts)) for group in result.samples] == [
        ("easy/0", 2), ("easy/1", 2), ("hard/0", 4),
    ]  # fmt: skip
    assert [result.benchmarks[name]["eval/k"] for name in ("easy", "hard")] == [2, 4]
    assert not {"eval/k", "eval/greedy_accuracy"} & set(result.metrics) and result.metrics["eval/prompts"] == 3
    assert result.metrics["eval/average"] == pytest.approx((1.0 + 0.25) / 2)


def test_prompts_too_long_to_be_asked_are_wrong(asked):
    """As `megatron_nft.evaluate` counts them."""
    result = held_out.evaluate(None, Judge(), [benchmark("easy", num_too_long=2), benchmark("hard")], CONFIG)
    assert {request.prompt.prompt_id for request in asked[0]} == set(NUM_RIGHT)
    easy = result.benchmarks["easy"]
    assert (easy["eval/prompts"], easy["eval/prompts_too_long"], easy["eval/greedy_accuracy"]) == (4, 2, 0.5)
    assert easy["eval/avg_at_k"] == pytest.approx(1.5 / 4)
    assert (result.metrics["eval/prompts"], result.metrics["eval/prompts_too_long"]) == (5, 2)
    assert result.metrics["eval/greedy_accuracy"] == 2 / 5
    assert result.metrics["eval/average"] == pytest.approx((1.5 / 4 + 0.25) / 2)


def test_an_average_is_of_one_kind_of_answers(asked):
    """Where some benchmarks are sampled and others not, of the greedy ones; the sampled ones stand by their file."""
    result = held_out.evaluate(None, Judge(), BENCHMARKS, evaluate_config(samples=0, samples_of={"hard": 4}))
    assert result.metrics["eval/average"] == pytest.approx((1.0 + 0.0) / 2)
    assert not {"eval/k", "eval/avg_at_k"} & set(result.metrics)
    assert result.benchmarks["hard"]["eval/avg_at_k"] == 0.25 and "eval/avg_at_k" not in result.benchmarks["easy"]


def test_every_benchmark_is_asked_something():
    only = {"samples": 0, "greedy": False}
    with pytest.raises(RecipeError, match="leave nothing to measure of easy; set one of them, or name it in"):
        held_out.check_samples_of(evaluate_config(**only, samples_of={"hard": 4}), BENCHMARKS)
    held_out.check_samples_of(evaluate_config(**only, samples_of={"hard": 4, "easy": 1}), BENCHMARKS)
    with pytest.raises(RecipeError, match="names 'soft', which is no benchmark here: easy, hard"):
        held_out.check_samples_of(evaluate_config(samples_of={"soft": 4}), BENCHMARKS)


def test_it_samples_as_its_own_settings_say_and_the_same_each_time(asked):
    for _ in range(2):
        held_out.evaluate(None, Judge(), BENCHMARKS, CONFIG)
    first, second = asked
    assert [(r.request_id, r.seed_id, r.sampling) for r in first] == [
        (r.request_id, r.seed_id, r.sampling) for r in second
    ]
    assert [r.request_id for r in first] == [-1, -2, -3, -4, -5, -6] and len({r.seed_id for r in first}) == 3
    sampled, greedy = first[0].sampling, first[-1].sampling
    assert (greedy.group_size, greedy.temperature) == (1, 0.0)
    assert (sampled.group_size, sampled.temperature, sampled.top_p, sampled.seed) == (4, 0.6, 0.7, 3)


def test_greedy_and_sampled_answers_of_all_benchmarks_are_one_queue_with_the_longest_prompts_first(asked):
    long = Prompt(prompt_id="easy/2", text="", token_ids_P=np.zeros(9, np.int32), ground_truth="", data_source="")
    requests = held_out.requests_to([*PROMPTS, long], CONFIG)
    assert [(r.sampling.group_size, r.prompt.prompt_id) for r in requests] == [
        (count, name) for count in (4, 1) for name in ("easy/2", "easy/0", "easy/1", "hard/0")
    ]


def test_answers_that_came_beside_a_step_are_worth_the_same(asked):
    """Where the engines sleep while the actor trains, the rollouts' source has had them answered."""
    answers = {request.request_id: answered(request) for request in held_out.requests_to(PROMPTS, CONFIG)}
    beside = held_out.evaluate(None, Judge(), BENCHMARKS, CONFIG, answers=answers)
    assert asked == [], "engines are asleep"
    at_once = held_out.evaluate(None, Judge(), BENCHMARKS, CONFIG)
    assert (beside.metrics, beside.benchmarks) == (at_once.metrics, at_once.benchmarks)
    assert [g.prompt.prompt_id for g in beside.samples] == [g.prompt.prompt_id for g in at_once.samples]
