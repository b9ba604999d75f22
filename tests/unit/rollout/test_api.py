"""Prompts as requests: every prompt is answered once, in order, and what comes twice has seeds of its own."""

import numpy as np
import pytest

from megatron_nft.rollout.api import Sampling, answer_here, requests_of
from megatron_nft.types import Prompt, RolloutGroup

SAMPLING = Sampling(group_size=2, temperature=1.0, max_answer_tokens=8, seed=1)


def prompt(name):
    return Prompt(
        prompt_id=name, text=name, token_ids_P=np.array([1], dtype=np.int32), ground_truth="", data_source="toy"
    )


class Reversing:
    """An engine that answers the last prompt first, a few a call."""

    def __init__(self, per_call):
        self.per_call, self.asked, self.left = per_call, [], []

    def advance(self, stream, requests, dropped, seconds):
        assert stream and not dropped
        self.asked += requests
        self.left = self.left + requests
        done = [self.left.pop() for _ in range(min(self.per_call, len(self.left)))]
        return [(request.request_id, RolloutGroup(prompt=request.prompt, rollouts=())) for request in done], 0.1


@pytest.mark.parametrize("per_call", [1, 2, 7])
def test_groups_come_back_in_the_order_of_the_prompts(per_call):
    prompts = [prompt(name) for name in "abcde"]
    engine = Reversing(per_call)
    progress = []
    groups = answer_here(engine, prompts, SAMPLING, lambda done, total: progress.append((done, total)))
    assert [g.prompt for g in groups] == prompts
    assert progress == [(i, 5) for i in range(1, 6)]
    assert [request.prompt for request in engine.asked] == prompts, "each once"


def test_a_repeated_prompt_is_sampled_under_seeds_of_its_own():
    engine = Reversing(1)
    groups = answer_here(engine, [prompt("a"), prompt("b"), prompt("a")], SAMPLING)
    assert [g.prompt.prompt_id for g in groups] == ["a", "b", "a"]
    assert [request.seed_id for request in engine.asked] == ["a", "b", "a#2"]


def test_ids_go_on_from_the_first():
    assert [r.request_id for r in requests_of([prompt("a"), prompt("a")], SAMPLING, 7)] == [7, 8]


def test_greedy_groups_have_one_answer():
    with pytest.raises(ValueError, match="4 equal answers; set group_size = 1"):
        Sampling(group_size=4, temperature=0, max_answer_tokens=8, seed=1)
