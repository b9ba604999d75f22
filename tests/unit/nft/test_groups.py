"""Which groups are kept, and what becomes of them."""

import numpy as np
import pytest

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.groups import teaches, to_sequences
from megatron_nft.nft.rewards import clamp_correct_rate, prompt_weight
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict


def group(kinds, truncated=()):
    prompt = Prompt(prompt_id="p/0", text="1+1=", token_ids_P=np.array([1, 2, 1, 3], np.int32), ground_truth="2",
                    data_source="test")  # fmt: skip
    rollouts = tuple(
        Rollout(text="2", token_ids_A=np.array([7, 8], np.int32), engine_logprobs_A=np.array([-0.1, -0.2], np.float32),
                truncated=i in truncated, policy_version=3)
        for i in range(len(kinds))
    )  # fmt: skip
    return RolloutGroup(prompt=prompt, rollouts=rollouts, verdicts=tuple(Verdict(kind=kind) for kind in kinds))


@pytest.mark.parametrize(
    ("settings", "taught"),
    [
        ({"name": "nft"}, [True, False, False, False]),
        ({"name": "grpo"}, [True, False, False, False]),
        ({"name": "psr"}, [True, True, False, False]),
        ({"name": "nsr"}, [True, False, True, False]),
        ({"name": "w_reinforce"}, [True, True, True, False]),
        ({"name": "w_reinforce", "pos_weight": 0.0, "pos_weight_end": 0.1, "schedule_steps": 5}, [True] * 3 + [False]),
        ({"name": "topr"}, [True, True, True, False]),
        ({"name": "asymre"}, [True, True, True, False]),
        ({"name": "asymre", "baseline_shift": 0.0}, [True, False, False, False]),
    ],
)
def test_which_groups_a_method_learns_from(settings, taught):
    """Mixed, all right, all wrong, none graded. Of an unmixed one a step's rows weigh something."""
    groups = [group(["right", "wrong"]), group(["right", "right"]), group(["wrong", "timeout"]), group(["error"])]
    algorithm = AlgorithmConfig(**settings)
    assert [teaches(of_prompt, algorithm) for of_prompt in groups] == taught
    if settings == {"name": "asymre"}:
        assert [s.advantage for s in to_sequences(groups[1], algorithm, max_answer_tokens=8)] == pytest.approx(
            [0.1] * 2
        )


def test_what_the_machine_could_not_grade_is_no_wrong_answer():
    """It leaves its group: K - 1 answers are left, and a group that is right but for it has nothing to learn from."""
    for fault in ("timeout", "error"):
        assert not group(["right", "right", fault]).is_mixed
        assert not group(["wrong", fault]).is_mixed
        mixed = group(["right", fault, "wrong", "wrong"])
        assert mixed.is_mixed and mixed.correct_rate == pytest.approx(1 / 3)
        assert [v.kind for v in mixed.graded.verdicts] == ["right", "wrong", "wrong"]
        assert [s.verdict for s in to_sequences(mixed, AlgorithmConfig(), max_answer_tokens=8)] == [1.0, 0.0, 0.0]
        dapo = to_sequences(mixed, AlgorithmConfig(name="dapo"), max_answer_tokens=8)
        assert sum(s.advantage for s in dapo) == pytest.approx(0)
    assert group(["timeout", "error"]).correct_rate == 0
    cut = group(["right", "timeout"], truncated={1})  # wrong, whatever a grader says
    assert cut.is_mixed and cut.correct_rate == 0.5 and cut.graded is cut


def test_a_truncated_right_answer_is_wrong():
    cut = group(["right", "right"], truncated={1})
    assert cut.rights == [True, False] and cut.is_mixed and cut.correct_rate == 0.5


def test_sequences_carry_prompt_answer_and_verdict():
    right, wrong, cut = to_sequences(group(["right", "wrong", "unparsable"]), AlgorithmConfig(), max_answer_tokens=8)
    assert right.token_ids_T.tolist() == [1, 2, 1, 3, 7, 8] and right.token_ids_T.dtype == np.int32
    assert (right.num_prompt_tokens, right.num_answer_tokens) == (4, 2)
    assert [s.verdict for s in (right, wrong, cut)] == [1.0, 0.0, 0.0]
    assert right.correct_rate == pytest.approx(1 / 3)
    assert right.old_logprobs_A is None


def test_prompt_weights_by_hand():
    assert [prompt_weight(0.2, n) for n in (0, 1, 2)] == pytest.approx([1.0, 0.8, 2.0])
    assert (clamp_correct_rate(0.0), clamp_correct_rate(1.0), clamp_correct_rate(0.3)) == (0.02, 0.98, 0.3)
