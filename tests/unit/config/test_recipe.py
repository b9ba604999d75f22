"""Recipes as text: what is read, what is refused, and what the refusal says."""

import subprocess
import sys

import pytest

from megatron_nft.config import load_config, to_toml
from tests.unit.config.conftest import refusal


def test_command_line_over_recipe_over_default(recipe):
    config = load_config(recipe, ["actor.tp=2", "run.name=mine", "optimizer.learning_rate=3e-4"])
    assert config.data.max_prompt_tokens == 100 and config.rollout.group_size == 16
    assert (config.actor.tp, config.run.name, config.optimizer.learning_rate) == (2, "mine", 3e-4)


def test_resolved_recipe_reads_back_equal(recipe, tmp_path):
    modes = 'verdict.modes={gsm8k = "last_number", "a/b \\" c" = "boxed", shop = "shop.grading:price"}'
    config = load_config(recipe, ["run.seed=7", modes, "evaluate.samples_of={math500 = 1}"])
    assert config.verdict.modes == {"gsm8k": "last_number", 'a/b " c': "boxed", "shop": "shop.grading:price"}
    again = tmp_path / "resolved.toml"
    again.write_text(to_toml(config))
    assert load_config(again) == config


def test_a_run_needs_training_data_and_an_evaluation_none(recipe):
    assert "data.train is missing or empty" in refusal(recipe, "data.train=[]")
    config = load_config(None, [f"model.path={recipe.parent / 'model'}", "data.max_prompt_tokens=8",
                                "rollout.max_answer_tokens=8"], trains=False)  # fmt: skip
    assert config.data.train == []


def test_config_is_read_only(recipe):
    with pytest.raises(ValueError, match="frozen"):
        load_config(recipe).run.seed = 2


def test_unknown_key_lists_the_known_ones(recipe):
    message = refusal(recipe, "actor.tensor=2")
    assert "actor.tensor: unknown key; known here: tp, pp, dp" in message
    assert "rollouts: unknown key" in refusal(recipe, "rollouts.tp=2")


def test_every_wrong_value_is_listed_with_its_reason(recipe):
    message = refusal(recipe, "rollout.group_size=1", "actor.precision=fp16")
    assert "rollout.group_size = 1: Input should be greater than or equal to 2" in message
    assert "actor.precision = 'fp16'" in message and "'fp32', 'bf16', 'fp8-delayed'" in message


def test_what_a_section_refuses_is_listed_with_the_other_problems(recipe):
    message = refusal(recipe, "actor.vpp=2", "evaluate.temperature=0", "evaluate.samples=4", "rollout.tp=0")
    assert message.splitlines()[1:] == [
        "  rollout.tp = 0: Input should be greater than or equal to 1",
        "  actor.vpp = 2 needs actor.pp > 1; one stage cannot be interleaved with others",
        "  evaluate.temperature = 0 gives 4 equal answers; set evaluate.samples = 1, or a temperature above 0",
    ]


def test_malformed_files_and_overrides(recipe, tmp_path):
    assert "no recipe at" in refusal(tmp_path / "none.toml")
    assert "not of the form section.key=value" in refusal(recipe, "actor.tp")
    recipe.write_text("[model\n")
    assert "not valid TOML" in refusal(recipe)
    recipe.write_text("")
    assert "can't be read: Is a directory; give a TOML file" in refusal(tmp_path)
    assert "can't be read: Not a directory" in refusal(recipe / "x.toml")
    for value in ("9" * 5000, "[" * 5000):
        recipe.write_text("")
        assert "can't be read: " in refusal(recipe, f"run.seed={value}")
        recipe.write_text(f"[run]\nseed = {value}\n")
        assert str(recipe) in refusal(recipe)
    for text in ("actor = 3\n", "[[actor]]\ntp = 1\n"):
        recipe.write_text(text)
        assert "actor = " in refusal(recipe, "actor.tp=1")
    recipe.write_text("[data]\ntrain = []\n")
    assert "model: missing; the recipe must set it" in refusal(recipe)


def test_an_override_may_name_a_key_of_a_table(recipe):
    """It is set beside the recipe's others; the table as a whole replaces them."""
    recipe.write_text(recipe.read_text() + "[evaluate]\nsamples_of = {math500 = 1, aime24 = 4}\n")
    config = load_config(
        recipe, ["evaluate.samples_of.aime24=8", "rollout.vllm.compilation_config.mode=3", "rollout.vllm.watermark=0"]
    )
    assert config.evaluate.samples_of == {"math500": 1, "aime24": 8}
    assert config.rollout.vllm == {"compilation_config": {"mode": 3}, "watermark": 0}
    given = ["evaluate.samples_of.aime24=8", "evaluate.samples_of={amc23 = 2}", "evaluate.samples_of.minerva=3"]
    assert load_config(recipe, given).evaluate.samples_of == {"amc23": 2, "minerva": 3}
    given = ['verdict.modes."a.b"="boxed"', "verdict.modes.lighteval/MATH=boxed"]
    assert load_config(recipe, given).verdict.modes == {"a.b": "boxed", "lighteval/MATH": "boxed"}
    for wrong in ('verdict.modes."a.b=3', "verdict.'modes=3", '"verdict"=3'):
        assert "not of the form section.key=value" in refusal(recipe, wrong)
    assert "rollout.vlm: unknown key" in refusal(recipe, "rollout.vlm.watermark=0")
    assert "actor.tp" in refusal(recipe, "actor.tp.size=2")
    recipe.write_text(recipe.read_text() + "[actor]\ntp = 1\n")
    assert refusal(recipe, "actor.tp.size=2") == "override actor.tp.size: actor.tp = 1 in the recipe, which is no table"
    assert "not of the form section.key=value" in refusal(recipe, "rollout.vllm.=3")


@pytest.mark.parametrize("setting", ["rollout.temperature", "optimizer.learning_rate", "algorithm.neg_weight"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_numbers_are_finite(recipe, setting, value):
    assert f"{setting} = {value}: Input should be a finite number" in refusal(recipe, f"{setting}={value}")


def test_shipped_recipes_load():
    assert load_config("launch/recipes/quickstart.toml").cluster.device == "cpu"


def test_config_imports_nothing_heavy():
    """Nor numpy: a login node, or a doctor on a broken machine, has it in milliseconds."""
    heavy = ("torch", "ray", "vllm", "megatron", "transformers", "datasets", "numpy", "math_verify")
    code = f"import megatron_nft.config, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("mode", ["box", "module:", "module:two words", ":function", "boxed:", "a.b", "last number"])
def test_a_verdict_mode_is_one_of_ours_or_a_function_of_a_module(recipe, mode):
    message = refusal(recipe, f'verdict.modes={{shop = "{mode}"}}')
    assert f"verdict.modes.shop = '{mode}': choose one of boxed, strict_boxed, answer_line, last_number" in message
    assert message.endswith('or a function of your own as "package.module:function"')
