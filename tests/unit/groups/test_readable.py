"""A mode that finds no answer is seen within a step's worth of graded answers, with answers to read."""

import numpy as np
import pytest

from megatron_nft.config import VerdictConfig
from megatron_nft.groups.queue import NoMixedGroups
from megatron_nft.groups.readable import ReadableAnswers, UnreadableAnswers
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict

NO_BOX = r"no whole \boxed{...} in the answer's last 100 characters"


def group(number, readable=0, size=16, source="math_dapo_boxed", cut=False):
    """A group of which so many answers can be read."""
    prompt = Prompt(prompt_id=f"p/{number}", text=f"What is {number} + 1?", token_ids_P=np.zeros(1, np.int32),
                    ground_truth="2", data_source=source)  # fmt: skip
    rollouts = tuple(
        Rollout(text=f"It is {i}, I say {number}.", token_ids_A=np.zeros(2, np.int32),
                engine_logprobs_A=np.zeros(2, np.float32), truncated=cut, policy_version=0)
        for i in range(size)
    )  # fmt: skip
    verdicts = (Verdict(kind="wrong"),) * readable + (Verdict(kind="unparsable", detail=NO_BOX),) * (size - readable)
    return RolloutGroup(prompt=prompt, rollouts=rollouts, verdicts=verdicts)


def test_a_step_without_readable_answers_stops_the_run_with_three_of_them():
    watch = ReadableAnswers(VerdictConfig(), groups_per_step=32)
    for number in range(31):
        assert watch.add([group(number)]) == []
    with pytest.raises(UnreadableAnswers) as stopped:
        watch.add([group(31, readable=15, cut=True)])
    first, *lines = str(stopped.value).splitlines()
    assert first.startswith(
        "497 of 512 answers of 'math_dapo_boxed' are unparsable by mode 'strict_boxed' "
        f"({NO_BOX}; 1 of them were cut off): let the prompts ask for what the mode reads "
    )
    assert "data.system_prompt" in first and "verdict.modes" in first and 'verdict.if_unparsable = "warn"' in first
    assert lines == [
        "  a prompt ends: 'What is 0 + 1?'",
        *(f"  an answer: 'It is 0, I say {number}.'" for number in range(3)),
    ]
    assert isinstance(stopped.value, NoMixedGroups), "saved and told as other ends of sampling"


def test_a_warning_goes_on_and_comes_again_a_step_later():
    watch = ReadableAnswers(VerdictConfig(if_unparsable="warn"), groups_per_step=8)
    said = [watch.add([group(number)]) for number in range(16)]
    assert [len(lines) for lines in said] == [0] * 7 + [1] + [0] * 7 + [1]
    assert "if_unparsable" not in said[7][0]


@pytest.mark.parametrize(("readable", "stops"), [(0, True), (1, False), (16, False)])
def test_one_in_sixteen_is_enough_to_learn_from(readable, stops):
    watch = ReadableAnswers(VerdictConfig(), groups_per_step=10)
    groups = [group(number, readable=readable) for number in range(10)]
    if stops:
        with pytest.raises(UnreadableAnswers):
            watch.add(groups)
    else:
        assert watch.add(groups) == []


def test_each_data_source_is_looked_at_for_itself_once_it_has_enough():
    watch = ReadableAnswers(VerdictConfig(modes={"odd": "boxed"}, if_unparsable="warn"), groups_per_step=16)
    odd = [group(number, source="odd") for number in range(8)]
    assert watch.add([*odd[:3], *(group(n, readable=16) for n in range(13))]) == [], "answers to three prompts"
    (line,) = watch.add([*odd[3:], *(group(n, readable=16) for n in range(11))])
    assert line.startswith("128 of 128 answers of 'odd' are unparsable by mode 'boxed'")


def test_answers_that_are_cut_off_have_another_remedy():
    watch = ReadableAnswers(VerdictConfig(if_unparsable="warn"), groups_per_step=8)
    (line,) = watch.add([group(number, cut=True) for number in range(8)])
    assert "128 of them were cut off): raise rollout.max_answer_tokens; or let the prompts ask" in line


def test_never():
    watch = ReadableAnswers(VerdictConfig(max_unparsable=1.0), groups_per_step=8)
    assert watch.add([group(number) for number in range(8)]) == []


def test_long_answers_are_shown_by_their_ends():
    watch = ReadableAnswers(VerdictConfig(if_unparsable="warn"), groups_per_step=1)
    long = group(0, size=2)
    rollouts = tuple(
        Rollout(text="a" * 5000 + "\nlast", token_ids_A=r.token_ids_A, engine_logprobs_A=r.engine_logprobs_A,
                truncated=False, policy_version=0)
        for r in long.rollouts
    )  # fmt: skip
    (line,) = watch.add([RolloutGroup(prompt=long.prompt, rollouts=rollouts, verdicts=long.verdicts)])
    assert line.endswith("\\nlast'") and len(line) < 1500 and len(line.splitlines()) == 3
