"""The table of methods: every row has its file; what an answer's row gets; who takes scores."""

import numpy as np
import pytest

from megatron_nft.config import AlgorithmConfig
from megatron_nft.config.methods import METHODS, MethodRow
from megatron_nft.nft.groups import ScoreError, check_scores, to_sequences
from megatron_nft.nft.methods import Method, method_of
from megatron_nft.nft.rewards import rewards
from megatron_nft.observe.metrics import METRICS, publish
from megatron_nft.types import RESERVED_COLUMNS, Prompt, Rollout, RolloutGroup, Verdict


def group(*verdicts, truncated=(), **columns):
    """Answers of 1, 2, 3 ... tokens; a number is a score of a wrong answer."""
    prompt = Prompt(
        prompt_id="p/0", text="?", token_ids_P=np.array([1], np.int32), ground_truth="2", data_source="essays"
    )
    rollouts = tuple(
        Rollout(
            text="",
            token_ids_A=np.full(i + 1, 7, np.int32),
            engine_logprobs_A=np.zeros(i + 1, np.float32),
            truncated=i in truncated,
            policy_version=0,
            columns={name: make(i + 1) for name, make in columns.items()},
        )
        for i in range(len(verdicts))
    )
    judged = tuple(Verdict(kind=v) if isinstance(v, str) else Verdict(kind="wrong", score=v) for v in verdicts)
    return RolloutGroup(prompt=prompt, rollouts=rollouts, verdicts=judged)


@pytest.mark.parametrize("name", METHODS)
def test_every_row_is_a_method(name):
    algorithm = AlgorithmConfig(name=name)
    method = method_of(algorithm)
    assert set(method.takes) <= RESERVED_COLUMNS and set(method.metrics) <= set(METRICS)
    made = method.answers(group("right", "wrong"), algorithm, 8)
    assert all(values.shape == (2,) for values in made.values())
    assert algorithm.takes_scores == ("advantage" in method.takes)


def test_what_a_method_makes_of_a_group_stands_at_every_token(monkeypatch):
    def answers(group, algorithm, max_answer_tokens):
        return {"advantage": np.array([3.0, 4.0]), "length_share": np.array([1, 2]) / max_answer_tokens}

    toy = Method(takes=("length_share",), losses=lambda logprobs_A, columns, algorithm: logprobs_A, answers=answers)
    monkeypatch.setattr("megatron_nft.nft.methods.nft.METHOD", toy)
    first, second = to_sequences(group("right", "wrong", noise=np.ones), AlgorithmConfig(), max_answer_tokens=4)
    assert (first.advantage, second.advantage) == (3.0, 4.0)
    assert first.columns["length_share"].tolist() == [0.25] and second.columns["length_share"].tolist() == [0.5, 0.5]
    assert second.columns["length_share"].dtype == np.float32
    assert second.columns["noise"].tolist() == [1.0, 1.0], "and what came with the rollout stays"


def test_a_row_that_is_added_is_known_to_recipes(monkeypatch):
    row = MethodRow(module="megatron_nft.nft.methods.clipped", preset={"normalize": 2}, takes_scores=True)
    monkeypatch.setitem(METHODS, "mine", row)
    assert AlgorithmConfig(name="mine").normalize == 2
    with pytest.raises(
        ValueError, match=r"no such method; choose one of nft, rft, rft_script, grpo, .*, asymre, sft, mine"
    ):
        AlgorithmConfig(name="yours")


def test_scores_are_rewards_of_methods_that_take_them():
    scored = group(0.25, 1.0, "right", "wrong", 1.0, truncated={4})
    assert rewards(scored, max_answer_tokens=100).tolist() == [0.25, 1, 1, 0, 0], "a cut answer earns nothing"
    assert scored.rights == [False, False, True, False, False], "right is what the grader calls so"
    sequences = to_sequences(scored, AlgorithmConfig(name="dr_grpo"), max_answer_tokens=100)
    assert [s.advantage for s in sequences] == pytest.approx([-0.2, 0.55, 0.55, -0.45, -0.45])
    assert [s.verdict for s in sequences] == [0, 0, 1, 0, 0]


def test_groups_of_different_scores_are_mixed():
    assert [g.is_mixed for g in (group(0.5, 0.25), group(0.5, 0.5), group("wrong", 0.0), group("right", 0.5))] == [
        True, False, False, True,
    ]  # fmt: skip
    assert [g.is_mixed for g in (group(0.5, 0.5, truncated={1}), group(1.0, "right"))] == [True, False]


@pytest.mark.parametrize("name", ["nft", "rft"])
def test_a_method_of_right_and_wrong_refuses_scores(name):
    algorithm = AlgorithmConfig(name=name)
    check_scores([group("right", "wrong", 0.0), group("error", "timeout")], algorithm)
    message = "data source 'essays' scores an answer to p/0 with 0.5, and algorithm.name = \"{}\" takes right or wrong"
    for refused in (lambda g: check_scores([g], algorithm), lambda g: to_sequences(g, algorithm, max_answer_tokens=8)):
        with pytest.raises(ScoreError, match=message.format(name) + ".*choose one of grpo, dr_grpo, dapo"):
            refused(group("right", 0.5))
    with pytest.raises(ScoreError, match="with 1, "):
        check_scores([group(1.0)], algorithm)  # an answer that it calls wrong
    check_scores([group("right", 0.5)], AlgorithmConfig(name="grpo"))


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_a_score_is_a_share(score):
    with pytest.raises(ValueError, match="must be a number from 0 to 1"):
        Verdict(kind="wrong", score=score)


def test_a_metric_is_published_once(monkeypatch):
    monkeypatch.setattr("megatron_nft.observe.metrics.METRICS", dict(METRICS))
    for _ in range(2):
        publish("nft/mine", "1", "mean", "of my own")
    with pytest.raises(ValueError, match="'nft/mine' is public already, as 'of my own'"):
        publish("nft/mine", "1", "sum", "of yours")
