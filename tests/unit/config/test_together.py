"""Settings that are right one by one and wrong together; and that all that is wrong is said at once."""

import pytest

from megatron_nft.config import load_config
from tests.unit.config.conftest import refusal

TOP_P = "makes the engine's log-probs those of a part of the vocabulary"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.top_p=0.7", "algorithm.old_logprobs=engine"], TOP_P),
        (["rollout.top_p=0.99", "algorithm.importance_cap=2"], TOP_P),
        (["rollout.top_p=0.7", "algorithm.importance_cap=2", "algorithm.name=dapo"], "importance_cap = 2 compares"),
        (["run.seed=-1"], "run.seed = -1: Input should be greater than or equal to 0"),
        (["run.seed=4294967296"], "run.seed = 4294967296: Input should be less than or equal to 4294967295"),
        (["run.seed=1.5"], "run.seed = 1.5: "),
        (["algorithm.clip_high=0.28"], 'algorithm.clip_high = 0.28 is not read by "nft"; leave it out, or set'),
        (["algorithm.clip_low=0.5", "algorithm.name=rft"], 'clip_low = 0.5 is not read by "rft"'),
        (["algorithm.clamp_negative=0.5", "algorithm.name=dapo"], "to a method that reads it: nft"),
        (["algorithm.clamp_negative=0.5", "algorithm.name=rft"], 'is not read by "rft"'),
        (["algorithm.reduction_constant=100"], 'is the divisor of the "constant" reduction'),
        (["actor.routing_replay=actor", "algorithm.old_logprobs=engine"], "the actor's scoring, and there is none"),
        (["algorithm.name=sft", "actor.routing_replay=engine"], "replays the experts of sampled answers, and"),
        (["algorithm.name=sft", "actor.routing_replay=actor"], "replays the experts of sampled answers, and"),
        (["optimizer.decay_updates=5", "train.steps=2", "train.updates_per_step=4"],
         "optimizer.warmup_updates = 10 end after all of them (train.steps x updates_per_step = 8)"),
        (["observe.gap_stop_after=2", "observe.gap_bound=0"], "counts alarms, and observe.gap_bound = 0 has no alarm"),
        (["observe.gap_stop_after=2", "rollout.tail=keep"], 'with rollout.tail = "keep" there is no alarm by itself'),
        (["observe.gap_stop_after=2", "rollout.top_p=0.7"], "with rollout.top_p = 0.7 there is no alarm by itself"),
        (["rollout.top_logprobs=301"], "rollout.top_logprobs = 301 > the model's vocab_size 300"),
        (["rollout.engines=true"], "rollout.engines = True: it is true or false, which is no number"),
        (["verdict.batches={\"a:b\" = true}"], "a:b is true or false, which is no number"),
        (["evaluate.samples_of={math500 = true}"], "math500 is true or false, which is no number"),
        (["observe.gap_bound=false"], "observe.gap_bound = False: it is true or false"),
        (["actor.routing_replay=engine"], 'actor.routing_replay = "engine" is for mixtures of experts, and this qwen2'),
    ],
)  # fmt: skip
def test_pairs_that_would_be_wrong_silently(recipe, overrides, words):
    assert words in refusal(recipe, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.top_p=0.7"],
        ["algorithm.old_logprobs=engine"],
        ["run.seed=0"],
        ["observe.gap_stop_after=2"],
        ["observe.gap_stop_after=2", "rollout.top_p=0.7", "observe.gap_bound=0.5"],
        [
            "rollout.top_logprobs=300",
            "sft.learns=all",
            "evaluate.greedy=true",
            "rollout.vllm={enable_prefix_caching=true}",
        ],
        ["run.seed=4294967295"],
        ["algorithm.name=dapo", "algorithm.clip_high=0.3", "algorithm.overlong_share=0.5"],
        ["algorithm.clip_high=0.2", "algorithm.clamp_negative=1"],
        ["algorithm.name=dr_grpo", "algorithm.reduction_constant=100"],
    ],
)
def test_their_neighbours_are_allowed(recipe, overrides):
    load_config(recipe, overrides)


def test_every_violation_is_a_line_of_one_message(recipe):
    lines = refusal(
        recipe, "run.seed=-1", "rollout.top_p=0.7", "algorithm.importance_cap=2", "algorithm.clip_high=0.28",
        "actor.tp=4", "actor.vpp=2", "train.updates_per_step=3", "data.max_prompt_tokens=600", "weights.nonsense=1",
        "model.reference=/nowhere", "data.train=[]", "cluster.device=cpu", "actor.precision=fp8-tensorwise",
        'verdict.modes={shop = "box"}', "run.name=..", "rollouts.tp=3",
    ).splitlines()  # fmt: skip
    wanted = [
        "run.seed = -1:", "weights.nonsense: unknown key", "verdict.modes.shop = 'box':", "rollouts: unknown key",
        "actor.vpp = 2 needs actor.pp > 1", "train.groups_per_step = 512 is not a multiple", "run.name = '..' is no",
        "algorithm.clip_high = 0.28 is not read", "rollout.top_p = 0.7 makes", 'actor.precision = "fp8-tensorwise" ',
        "data.train is missing or empty", "actor.tp = 4 does not divide the model's 6 attention",
        "actor.tp = 4 does not divide the model's 2 key/value", "data.max_prompt_tokens 600 + rollout.max_answer",
    ]  # fmt: skip
    assert [words for words in wanted if not any(line.startswith(f"  {words}") for line in lines)] == []
    assert len(lines) == len(set(lines)) == 1 + len(wanted), lines


def test_nothing_is_said_of_a_default_in_the_place_of_a_wrong_value(recipe):
    """tp = 1 would leave 3 ranks of 6: but tp isn't 1."""
    lines = refusal(recipe, "actor.tp=0", "actor.dp=3", "cluster.actor_ranks=6", "data.train=7").splitlines()
    assert lines[1:] == [
        "  data.train = 7: Input should be a valid list",
        "  actor.tp = 0: Input should be greater than or equal to 1",
    ]
