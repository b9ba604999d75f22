"""How long answers are expected to be: of the newest policy, in whatever order groups arrive, over a checkpoint."""

import json
from itertools import permutations
from math import inf

import numpy as np

from megatron_nft.groups.lengths import ExpectedTokens
from megatron_nft.types import Prompt, Rollout, RolloutGroup


def make_prompt(name, tokens=3):
    return Prompt(prompt_id=name, text="", token_ids_P=np.zeros(tokens, np.int32), ground_truth="", data_source="")


def sampled(name, version, *lengths):
    rollouts = tuple(
        Rollout(text="", token_ids_A=np.zeros(n, np.int32), engine_logprobs_A=np.zeros(n, np.float32),
                truncated=False, policy_version=version)
        for n in lengths
    )  # fmt: skip
    return RolloutGroup(prompt=make_prompt(name), rollouts=rollouts)


def test_a_prompt_is_expected_to_be_answered_as_it_was_last_time():
    groups = [sampled("a", 0, 10, 20), sampled("a", 1, 4, 8), sampled("a", 1, 7, 7), sampled("b", 0, 100, 300)]
    found = set()
    for order in permutations(groups):
        expected = ExpectedTokens()
        for group in order:
            expected.add(group)
        found.add(tuple(expected.of(make_prompt(name, 5)) for name in "abc"))
    assert found == {(7, 200, inf)}


def test_a_checkpoint_holds_it():
    expected, again = ExpectedTokens(), ExpectedTokens()
    expected.add(sampled("a", 2, 10, 21))
    again.restore(json.loads(json.dumps(expected.state_dict())))
    again.add(sampled("a", 1, 90, 90))
    assert again.of(make_prompt("a")) == expected.of(make_prompt("a")) == 15
