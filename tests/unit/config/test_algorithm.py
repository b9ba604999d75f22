"""Methods: what each name stands for, and settings that are no method."""

import json

import pytest

from megatron_nft.config import load_config, to_toml
from megatron_nft.families.hf_config import ModelFolderError
from tests.unit.config.conftest import MODEL, refusal

NAMES = ("nft", "rft", "rft_script", "grpo", "dr_grpo", "dapo")


def algorithm(recipe, *overrides):
    return load_config(recipe, overrides).algorithm


def test_presets(recipe):
    nft, rft, script, grpo, dr_grpo, dapo = (algorithm(recipe, f"algorithm.name={name}") for name in NAMES)
    assert algorithm(recipe) == nft
    assert algorithm(recipe, "algorithm.neg_weight=0").model_copy(update={"name": "rft_script"}) == script
    assert [a.neg_weight for a in (nft, rft, script, grpo, dr_grpo, dapo)] == [1, 0, 0, -1, -1, -1]
    assert [a.normalize for a in (nft, rft, script, grpo, dr_grpo, dapo)] == [1, 0, 1, 2, 1, 2]
    assert [a.reduction for a in (nft, rft, grpo, dr_grpo, dapo)] == [
        "tokens", "tokens", "sequences", "constant", "tokens",
    ]  # fmt: skip
    assert [(a.clip_low, a.clip_high) for a in (grpo, dr_grpo, dapo)] == [(0.2, 0.2), (0.2, 0.2), (0.2, 0.28)]
    assert [a.overlong_penalty for a in (nft, grpo, dapo)] == [0, 0, 1]
    assert [a.is_clipped for a in (nft, rft, grpo, dr_grpo, dapo)] == [False, False, True, True, True]


def test_a_ratio_per_answer_counts_an_answer_once(recipe):
    assert algorithm(recipe, "algorithm.ratio_type=sequence").reduction == "sequences"


def test_neg_weight_of_minus_one_alone_means_dapo(recipe):
    assert algorithm(recipe, "algorithm.neg_weight=-1") == algorithm(recipe, "algorithm.name=dapo")


def test_a_preset_may_be_overridden(recipe):
    mine = algorithm(recipe, "algorithm.name=dapo", "algorithm.overlong_penalty=0", "algorithm.clip_high=0.5")
    assert (mine.overlong_penalty, mine.clip_high, mine.normalize) == (0, 0.5, 2)
    assert algorithm(recipe, "algorithm.neg_weight=0.5").name == "nft"


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_preset_reads_back_equal(recipe, tmp_path, name):
    config = load_config(recipe, [f"algorithm.name={name}"])
    again = tmp_path / "resolved.toml"
    again.write_text(to_toml(config))
    assert load_config(again) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["name=ppo"],
            "algorithm.name = 'ppo': no such method; choose one of nft, rft, rft_script, grpo, dr_grpo, dapo",
        ),
        (["name=[1]"], "algorithm.name = [1]: Input should be a valid string"),
        (["neg_weight=-0.5"], "neg_weight = -0.5: choose 0 (RFT) or more (1: NFT), or exactly -1 (DAPO)"),
        (["normalize=4"], "algorithm.normalize = 4: Input should be 0, 1, 2 or 3"),
        (["kl_weight=0.1"], "kl_weight = 0.1 needs a reference model; set model.reference to an HF folder"),
        (["overlong_penalty=1"], 'overlong_penalty = 1 shapes a reward, and "nft" has verdicts only'),
        (["name=nft", "neg_weight=-1"], "leave algorithm.name out (DAPO), or choose one of grpo, dr_grpo, dapo"),
        (["name=grpo", "neg_weight=0.5"], 'leave neg_weight out, or set algorithm.name = "nft"'),
        (["name=rft", "neg_weight=1"], "learns from right answers only"),
        (["name=grpo", "normalize=0"], 'normalize = 0 is not defined for "grpo"; choose 1'),
        (["name=dapo", "ratio_type=sequence"], 'ratio_type = "sequence" is not read by "dapo"; leave it out'),
        (["name=gspo", "reduction=tokens"], 'algorithm.name = "gspo" it has one ratio and counts once'),
        (["name=asymre", "neg_weight=0.5"], 'neg_weight = 0.5 is not read by "asymre"'),
        (["name=nsr", "pos_weight=0.5"], '"nsr" learns from wrong answers only, pos_weight = 0.5 weighs right ones'),
        (
            ["name=psr", "neg_weight_end=0.5", "schedule_steps=9"],
            '"psr" learns from right answers only, neg_weight = 0.5',
        ),
        (["neg_weight=0", "pos_weight=0"], "leave nothing to learn from"),
        (["name=nsr", "neg_weight=0"], "leave nothing to learn from"),
        (
            ["neg_weight=0", "pos_weight=0", "neg_weight_end=1", "schedule_steps=5"],
            "in the first step; raise",
        ),
        (["pos_weight=0", "neg_weight_end=0", "schedule_steps=5"], "pos_weight = 0 leave nothing to learn from after"),
        (["neg_weight_end=0", "pos_weight_end=0", "schedule_steps=5"], "algorithm.pos_weight_end = 0 leave nothing"),
        (["name=nsr", "neg_weight_end=0", "schedule_steps=5"], "the run would go on with a loss of 0"),
        (["name=psr", "pos_weight_end=0", "schedule_steps=5"], "the run would go on with a loss of 0"),
        (["neg_weight_end=0.5"], "algorithm.schedule_steps doesn't say when"),
        (["schedule_steps=9"], "is how long a weight changes, and none does"),
        (["name=grpo", "dual_clip=1.1"], "would cut what clip_high = 0.2 lets pass; set it above 1.2"),
        (["name=gspo", "dual_clip=3"], 'dual_clip = 3.0 is not read by "gspo"'),
        (["dual_clip=3"], "to a method that reads it: grpo, dr_grpo, dapo, maxrl"),
        (["name=grpo", "pos_weight=0.5"], 'pos_weight = 0.5 is not read by "grpo"'),
        (
            ["corrections={icepop = 2.0}"],
            "corrections.icepop: no such correction; choose from token_truncate, token_mask",
        ),
        (
            ["corrections={token_mask = 2.0}"],
            "token_mask = 2.0: it takes a band, [lower, upper] with 0 <= lower < upper",
        ),
        (["corrections={token_mask = [2.0, 0.5]}"], "token_mask = [2.0, 0.5]: it takes a band"),
        (["corrections={token_mask = [2.0, 5.0]}"], "[2.0, 5.0] leaves out a ratio of 1, that of tokens on which"),
        (["corrections={geometric_mask = [0, 1e-9]}"], "leaves out a ratio of 1"),
        (["corrections={token_truncate = 1e-4}"], "give bounds around it, such as 2.0"),
        (["importance_cap=0.5"], "importance_cap = 0.5 leaves out a ratio of 1"),
        (["corrections={token_k1 = true}"], "token_k1 is true or false, which is no number"),
        (["corrections={token_mask = [false, 2.0]}"], "token_mask is true or false"),
        (["normalize=true"], "algorithm.normalize = True: it is true or false, which is no number"),
        (["name=maxrl", "normalize=0"], "choose 1 (Dr. GRPO), 2 (GRPO, DAPO) or 3 (MaxRL)"),
        (["corrections={token_k1 = [0.1, 0.5]}"], "token_k1 = [0.1, 0.5]: it takes one number above 0"),
        (["corrections={sequence_k3 = 0}"], "it takes one number above 0"),
        (["corrections={token_mask = [0.5, 2.0]}", "importance_cap=2"], "which is then corrected for twice"),
        (
            ["corrections={token_mask = [0.5, 2.0], sequence_mask = [0.5, 2.0]}"],
            "token_mask and sequence_mask would each",
        ),
        (["corrections={token_k1 = 0.1}", "old_logprobs=engine"], "knows the engine only; leave it out, or set"),
        (["score_centering=true"], 'set algorithm.old_logprobs = "engine", to which the ratio then is held'),
        (["score_centering=true", "old_logprobs=engine"], "rollout.top_logprobs = 0 has it say none"),
        (["score_centering=true", "old_logprobs=engine", "name=gspo"], "whole answer has no such"),
        (["score_centering=true", "old_logprobs=engine", "name=topr"], "whole answer has no such"),
        (["name=rft_script", "neg_weight=1"], '"rft_script" learns from right answers only'),
        (["reduction=published"], "set algorithm.published_ranks = 32 (their 7B run) or 16 (their 32B run)"),
        (["name=dapo", "reduction=published", "published_ranks=32"], '"published" is not defined for "dapo"'),
        (["name=grpo", "reduction=published", "published_ranks=32"], "choose one of nft, rft, rft_script"),
        (["ratio_type=sequence", "reduction=published", "published_ranks=1"], 'set reduction = "sequences"'),
        (["ratio_type=sequence", "reduction=tokens"], "would weigh an answer by its tokens"),
    ],
)
def test_algorithms_that_are_none(recipe, overrides, message):
    assert message in refusal(recipe, *(f"algorithm.{o}" for o in overrides))


@pytest.mark.parametrize(
    "bounds", ["token_mask = [1, 5.0]", "token_mask = [0.5, 1]", "token_truncate = 1", "token_k3 = 1e-9"]
)
def test_bounds_that_keep_a_ratio_of_one_are_taken(recipe, bounds):
    load_config(recipe, [f"algorithm.corrections={{{bounds}}}"])


def test_a_reference_of_another_shape(recipe, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(MODEL | {"num_hidden_layers": 2}))
    message = refusal(recipe, "algorithm.kl_weight=0.1", f"model.reference={other}")
    assert "is not of the same architecture as model.path" in message
    with pytest.raises(ModelFolderError, match="no such folder"):
        load_config(recipe, ["algorithm.kl_weight=0.1", "model.reference=/nowhere"])
