"""A real vLLM engine on tiny Qwen2 models: weight updates are exact, spoilt ones are refused, sampling is reproducible.

What the engines do is in engine_jobs.py: vllm needs its environment before it is imported, so they have processes of
their own.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from megatron_nft.data.tokenizer import exact_tokenizer
from tests.conftest import TAKES_MINUTES
from tests.parallel.families import save_tokenizer

pytestmark = pytest.mark.e2e

KINDS = [("untied", "float32"), ("tied", "bfloat16")]
OTHER_KINDS = [("untied", "bfloat16"), ("tied", "float32")]
"""Whose parts are all in KINDS, and whose pairs are in test_resharding.py."""


def make_model(folder, seed, tied, dtype):
    """A two-layer Qwen2 with random weights, biases and norms, and a tokenizer of the words w3..w255."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=tied == "tied",
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(folder, config.vocab_size)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """("old" or "new", tied or not, dtype) -> the folder of a model."""
    folder = tmp_path_factory.mktemp("models")
    return {
        (which, *kind): make_model(folder / "-".join((which, *kind)), seed, *kind)
        for which, seed in (("old", 1), ("new", 2))
        for kind in KINDS + OTHER_KINDS
    }


def update_jobs(models, kinds):
    jobs = {}
    for kind in kinds:
        old, new, dtype = models["old", *kind], models["new", *kind], kind[1]
        jobs["updated", *kind] = "updated", {"old": old, "new": new, "dtype": dtype}
        jobs["fresh", *kind] = "fresh", {"model": new, "dtype": dtype}
    return jobs


@pytest.fixture(scope="module")
def results(models, engine_server):
    """Runs all jobs; their names -> what they returned."""
    old, new = models["old", "untied", "float32"], models["new", "untied", "float32"]
    jobs = {
        "broken": ("broken_updates", {"old": old, "new": new}),
        "sampling": ("sampling", {"model": new}),
        "under way": ("under_way", {"old": old, "new": new}),
        "memory": ("memory_of_batch_sizes", {"model": new}),
        "shared": ("tokens_of_first_step", {"model": new, "num_prompt_tokens": 70, "group_size": 4}),
    }
    jobs["ends"] = "ends", {"model": with_ends(new, new + "-ends")}
    return engine_server.run(jobs | update_jobs(models, KINDS))


ENDS = [1, *range(200, 256)]


def with_ends(model, folder):
    """The model, with a list of tokens that end an answer."""
    shutil.copytree(model, folder)
    (Path(folder) / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
    return folder


def result(results, name):
    assert not isinstance(results[name], str), results[name]
    return results[name]


def assert_equal(groups, others):
    for group, other in zip(groups, others, strict=True):
        assert group.prompt.prompt_id == other.prompt.prompt_id
        for a, b in zip(group.rollouts, other.rollouts, strict=True):
            assert a.token_ids_A.tolist() == b.token_ids_A.tolist()
            assert a.engine_logprobs_A.tolist() == b.engine_logprobs_A.tolist()


def assert_updated_is_fresh(results, kind):
    before, after = result(results, ("updated", *kind))
    fresh = result(results, ("fresh", *kind))
    assert_equal(after, fresh)
    for group, other in zip(before, fresh, strict=True):  # the update must have mattered
        assert group.rollouts[0].engine_logprobs_A.tolist() != other.rollouts[0].engine_logprobs_A.tolist()
    assert {r.policy_version for g in before for r in g.rollouts} == {0}
    assert {r.policy_version for g in after for r in g.rollouts} == {3}


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_updated_engine_equals_a_fresh_one_bit_for_bit(results, kind):
    assert_updated_is_fresh(results, kind)


def test_memory_does_not_grow_with_the_batch_sizes_it_has_met(results):
    """oneDNN keeps a kernel for each, 550 MiB of these, unless it is told to keep few; 155 MiB are the KV cache's."""
    assert result(results, "memory") < 300


def test_a_groups_short_prompt_is_computed_once(results):
    """But for what fills no block of 32."""
    assert result(results, "shared") == 70 + 3 * (70 - 64)


@TAKES_MINUTES
def test_so_do_the_other_pairs_of_tied_and_dtype(models, engine_server):
    others = engine_server.run(update_jobs(models, OTHER_KINDS))
    for kind in OTHER_KINDS:
        assert_updated_is_fresh(others, kind)


@pytest.mark.parametrize(
    "case, says",
    [
        ("names", "missing .*model.embed_tokens.weight.*unexpected .*model.layers.9.strange"),
        ("not started", "no weight update is open"),
        ("incomplete", "missing .*model.layers.1.self_attn.k_proj.weight"),
        ("refuses", "refusing to generate: the last weight update failed .*k_proj"),
        ("dtype", "has dtype torch.float64, the engine's is torch.float32"),
        ("unknown", "unknown .*model.strange"),
        ("gone", "cannot map bucket 0"),
        ("refuses halfway", "refusing to generate: a weight update has begun and not finished"),
        ("shut down", "has been shut down"),
    ],
)
def test_spoilt_update_is_refused(results, case, says):
    errors, _, _ = result(results, "broken")
    assert re.search(says, errors[case]), errors[case]


def test_engine_recovers_from_spoilt_updates(results):
    _, still_good, after = result(results, "broken")
    before, _ = result(results, ("updated", "untied", "float32"))
    assert_equal(still_good, before)
    assert_equal(after, result(results, ("fresh", "untied", "float32")))
    assert {r.policy_version for g in after for r in g.rollouts} == {2}


def answers(groups):
    return {i: [r.token_ids_A.tolist() for r in group.rollouts] for i, group in groups.items()}


@pytest.mark.parametrize("arrangement", ["again", "three engines, reversed", "one by one", "after refusal"])
def test_same_seed_gives_the_same_answers(results, arrangement):
    sampled = result(results, "sampling")
    assert answers(sampled[arrangement]) == answers(sampled["base"])


def test_answers_differ_within_a_group_between_seeds_and_between_repeats_of_a_prompt(results):
    sampled = result(results, "sampling")
    for of_prompt in answers(sampled["base"]).values():
        assert len({tuple(a) for a in of_prompt}) == 4
    assert answers(sampled["base"]) != answers(sampled["other seed"])
    first, second = sampled["twice"]
    assert first.prompt.prompt_id == second.prompt.prompt_id == "toy/0"
    assert first.rollouts[0].token_ids_A.tolist() != second.rollouts[0].token_ids_A.tolist()
    assert sampled["progress"] == [(1, 2), (2, 2)]


def test_truncated_means_cut_before_the_end_token(results, models):
    tokenizer = exact_tokenizer(Path(models["new", "untied", "float32"]))
    rollouts = [r for g in result(results, "sampling")["base"].values() for r in g.rollouts]
    for r in rollouts:
        assert r.truncated == (r.token_ids_A[-1] != 1)
        assert len(r.token_ids_A) == len(r.engine_logprobs_A) <= 24
        assert (len(r.token_ids_A) == 24) if r.truncated else (1 not in r.token_ids_A[:-1])
        assert r.text == tokenizer.decode(r.token_ids_A.tolist(), skip_special_tokens=True)
    assert {r.truncated for r in rollouts} == {True, False}


@pytest.mark.parametrize("arrangement, temperature", [("base", 1.0), ("T=0.7", 0.7)])
def test_engine_logprobs_are_those_of_the_sampling_distribution(results, models, arrangement, temperature):
    model = AutoModelForCausalLM.from_pretrained(models["new", "untied", "float32"], dtype=torch.float32)
    for group in result(results, "sampling")[arrangement].values():
        for r in group.rollouts:
            ids_T = torch.from_numpy(np.concatenate([group.prompt.token_ids_P, r.token_ids_A])).long()
            with torch.no_grad():
                logits_TV = model(ids_T[None]).logits[0] / temperature
            logprobs_T = logits_TV.log_softmax(-1)[:-1].gather(-1, ids_T[1:, None])[:, 0]
            expected_A = logprobs_T[len(group.prompt.token_ids_P) - 1 :].numpy()
            assert np.abs(expected_A - r.engine_logprobs_A).max() < 1e-4


def test_top_p_leaves_the_nucleus_and_log_probs_are_within_it(results, models):
    """The fewest tokens that have half of the probability together; vLLM's rounding may take in one at the edge."""
    model = AutoModelForCausalLM.from_pretrained(models["new", "untied", "float32"], dtype=torch.float32)
    left_out = 0.0
    for group in result(results, "sampling")["top_p=0.5"].values():
        for r in group.rollouts:
            ids_T = torch.from_numpy(np.concatenate([group.prompt.token_ids_P, r.token_ids_A])).long()
            with torch.no_grad():
                probs_AV = model(ids_T[None]).logits[0].softmax(-1)[len(group.prompt.token_ids_P) - 1 : -1]
            sorted_AV, order_AV = probs_AV.sort(-1, descending=True)
            is_in_AV = sorted_AV.cumsum(-1) - sorted_AV < 0.5
            place_A = (order_AV == torch.from_numpy(r.token_ids_A).long()[:, None]).nonzero()[:, 1]
            assert is_in_AV.gather(-1, place_A[:, None]).all()
            mass_A = (sorted_AV * is_in_AV).sum(-1)
            expected_A = (sorted_AV.gather(-1, place_A[:, None])[:, 0] / mass_A).log()
            np.testing.assert_allclose(r.engine_logprobs_A, expected_A, atol=1e-4)
            left_out = max(left_out, float(1 - mass_A.min()))
    assert left_out > 0.3


def test_another_run_hears_nothing_of_what_the_one_before_has_left(results):
    heard, is_unfinished = result(results, "sampling")["left by another run"]
    assert heard == [[], []] and not is_unfinished


def test_an_id_that_is_asked_again_is_answered_once_and_anew(results):
    """A stream that was cut short leaves requests behind, of whose ids the next one of its name knows nothing."""
    (heard, is_unfinished), names = result(results, "sampling")["asked again"]
    assert sorted(heard) == [(0, names[2]), (1, names[3])] and not is_unfinished


def test_a_prompt_that_is_too_long_is_refused_and_those_beside_it_are_not_begun(results):
    sampled = result(results, "sampling")
    assert "vLLM refuses prompt toy/0" in sampled["too long"]
    assert not sampled["unfinished after refusal"]


def logprobs_of(model, group, rollout):
    ids_T = torch.from_numpy(np.concatenate([group.prompt.token_ids_P, rollout.token_ids_A])).long()
    with torch.no_grad():
        logprobs_TV = model(ids_T[None]).logits[0].log_softmax(-1)
    return logprobs_TV[:-1].gather(-1, ids_T[1:, None])[len(group.prompt.token_ids_P) - 1 :, 0].numpy()


@pytest.mark.parametrize("on_sync", ["keep", "recompute", "asleep"])
def test_answers_under_way_go_on_with_new_weights_and_every_token_knows_its_policy(results, models, on_sync):
    old, new = (
        AutoModelForCausalLM.from_pretrained(models[which, "untied", "float32"], dtype=torch.float32)
        for which in ("old", "new")
    )
    sampled, crossed = result(results, "under way"), 0
    for index in range(len(sampled["new"])):
        group = sampled[on_sync][index]
        for rollout in group.rollouts:
            versions_A = rollout.policy_versions_A
            assert versions_A[0] == 0 and (versions_A[12:] == 3).all() and set(versions_A) <= {0, 3}
            switch = int((versions_A == 0).sum())
            assert switch == min(12, len(versions_A))
            expected_A = logprobs_of(old, group, rollout)
            assert np.abs(expected_A - rollout.engine_logprobs_A)[:switch].max() < 1e-4
            if len(versions_A) > switch:
                crossed += 1
                gap_A = np.abs(logprobs_of(new, group, rollout) - rollout.engine_logprobs_A)[switch:]
                assert (gap_A.max() < 1e-4) == (on_sync != "keep"), "the KV cache is the old weights' only if kept"
    assert crossed >= 4


def test_answers_under_way_begin_again_with_new_weights(results):
    sampled = result(results, "under way")
    num_finished, _ = sampled["restart", "between"]
    restarted = {index: group for index, group in sampled["restart"].items() if index < 10}
    assert num_finished < len(restarted) == 3
    for index, group in restarted.items():
        if group.rollouts[0].policy_version == 3:
            assert_equal([group], [sampled["new"][10 + index]])  # the same seeds


@pytest.mark.parametrize("on_sync", ["keep", "recompute", "restart", "asleep"])
def test_no_new_answer_comes_from_old_weights_cache(results, on_sync):
    """The same long prompts again, beside requests that keep the old weights' blocks, in a batch of other sizes."""
    sampled = result(results, "under way")
    assert 10 not in sampled[on_sync], "dropped"
    for index in (11, 12):
        for a, b in zip(sampled[on_sync][index].rollouts, sampled["new"][index].rollouts, strict=True):
            assert a.token_ids_A.tolist() == b.token_ids_A.tolist() and set(a.policy_versions_A) == {3}
            np.testing.assert_allclose(a.engine_logprobs_A, b.engine_logprobs_A, atol=1e-4)
    for group, other in zip(sampled[on_sync, "between"][1], sampled["new", "between"], strict=True):
        assert group.rollouts[0].token_ids_A.tolist() == other.rollouts[0].token_ids_A.tolist()
    assert not sampled[on_sync, "unfinished"]


def test_each_end_of_sequence_of_generation_config_ends_an_answer_and_is_in_it(results):
    rollouts = result(results, "ends")
    ended = [rollout.token_ids_A.tolist() for rollout in rollouts if not rollout.truncated]
    assert len(ended) > 8 and len({answer[-1] for answer in ended}) > 3, "many tokens end answers"
    assert all(answer[-1] in ENDS and not set(answer[:-1]) & set(ENDS) for answer in ended)
    assert all(len(rollout.engine_logprobs_A) == len(rollout.token_ids_A) for rollout in rollouts)
    cut = [rollout.token_ids_A.tolist() for rollout in rollouts if rollout.truncated]
    assert all(len(answer) == 24 and not set(answer) & set(ENDS) for answer in cut)
