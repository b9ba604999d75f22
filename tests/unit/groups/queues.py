"""Queues, and what is asked of them and answered, for the tests beside."""

import numpy as np

from megatron_nft.groups.queue import GroupQueue
from megatron_nft.groups.share import MixedShare
from megatron_nft.rollout.api import Sampling
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict

SAMPLING = Sampling(group_size=2, temperature=1.0, max_answer_tokens=8, seed=5)


def make_queue(max_staleness, groups_per_step=4, max_rounds=3, num_steps=100, tail="wait"):
    return GroupQueue(
        groups_per_step=groups_per_step, max_staleness=max_staleness, max_rounds=max_rounds, num_steps=num_steps,
        tail=tail,
    )  # fmt: skip


def make_prompt(number):
    token_ids_P = np.arange(2, dtype=np.int32)
    return Prompt(prompt_id=f"p/{number}", text="", token_ids_P=token_ids_P, ground_truth="1", data_source="toy")


def answered(request, version, *, mixed=True, newer=()):
    """A group of two answers of three tokens, sampled by policy `version`, and then by those of `newer`."""
    rollouts = tuple(
        Rollout(
            text=f"{request.request_id}: é{i}",
            token_ids_A=np.array([7, 8, i], np.int32),
            engine_logprobs_A=np.array([-0.1, -0.2, -0.3 * i], np.float32),
            truncated=False,
            policy_version=version,
            newer_versions=newer,
        )
        for i in range(2)
    )
    verdicts = (
        Verdict(kind="right", detail="1"),
        Verdict(kind="wrong", score=0.25) if mixed else Verdict(kind="right"),
    )
    return RolloutGroup(prompt=request.prompt, rollouts=rollouts, verdicts=verdicts)


def ask(queue):
    """All that the queue misses: the requests."""
    first = queue._next_id
    return queue.begin([make_prompt(first + i) for i in range(queue.num_missing())], SAMPLING)


def grade(queue, requests, version, **keywords):
    for request in requests:
        queue.grade(request.request_id, answered(request, version, **keywords))


def ids(groups):
    return [int(group.prompt.prompt_id.removeprefix("p/")) for group in groups]


def after_a_first_step(tail, **more):
    """A queue whose first round was as large as a step, and whose second has just been asked for."""
    queue = make_queue(0, tail=tail, **more)
    grade(queue, [*ask(queue)], 0)
    grade(queue, queue.begin([make_prompt(4)], SAMPLING), 0, mixed=False)
    assert queue.take(1) is not None
    queue.trained()
    queue.synced(1, set(), restarts=False)
    queue.share = MixedShare(0.8, 5)  # as if no earlier step had been
    return queue, ask(queue)
