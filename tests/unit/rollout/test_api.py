"""Fanning prompts over engines: every prompt is answered once, in order, whatever the engines do."""

from collections import Counter

import numpy as np
import pytest

from megatron_nft.rollout.api import Sampling, sample_groups
from megatron_nft.types import Prompt, RolloutGroup

SAMPLING = Sampling(group_size=2, temperature=1.0, max_answer_tokens=8, seed=1)


def prompt(name):
    return Prompt(
        prompt_id=name, text=name, token_ids_P=np.array([1], dtype=np.int32), ground_truth="", data_source="toy"
    )


class Reversing:
    """Engines that answer the last prompt first and remember what they were asked."""

    def __init__(self, num_engines, lose=0):
        self.num_engines, self.lose = num_engines, lose

    def generate(self, shards, sampling):
        self.shards = [[p.prompt_id for p in shard] for shard in shards]
        groups = [RolloutGroup(prompt=p, rollouts=()) for shard in shards for p in shard]
        yield from reversed(groups[self.lose :])


@pytest.mark.parametrize("num_engines", [1, 2, 3, 7])
def test_groups_come_back_in_the_order_of_the_prompts(num_engines):
    prompts = [prompt(name) for name in "abcde"]
    engines = Reversing(num_engines)
    progress = []
    groups = sample_groups(engines, prompts, SAMPLING, lambda done, total: progress.append((done, total)))
    assert [g.prompt for g in groups] == prompts
    assert progress == [(i, 5) for i in range(1, 6)]
    assert len(engines.shards) == num_engines
    assert max(map(len, engines.shards)) - min(map(len, engines.shards)) <= 1


def test_a_repeated_prompt_is_sampled_under_ids_of_its_own():
    engines = Reversing(2)
    groups = sample_groups(engines, [prompt("a"), prompt("b"), prompt("a")], SAMPLING)
    assert [g.prompt.prompt_id for g in groups] == ["a", "b", "a"]
    assert Counter(id for shard in engines.shards for id in shard) == {"a": 1, "b": 1, "a#2": 1}


def test_a_lost_prompt_is_an_error():
    with pytest.raises(RuntimeError, match=r"without answers to 1 prompts, e.g. \['a'\]"):
        sample_groups(Reversing(1, lose=1), [prompt("a"), prompt("b")], SAMPLING)


def test_greedy_groups_have_one_answer():
    with pytest.raises(ValueError, match="4 equal answers; set group_size = 1"):
        Sampling(group_size=4, temperature=0, max_answer_tokens=8, seed=1)
