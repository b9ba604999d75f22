"""What a run reads before it starts anything: the problems that it trains on, and those that it is measured by."""

import pytest

from megatron_nft.config import RecipeError, load_config
from megatron_nft.data.prompts import load_prompts, load_tokenizer
from megatron_nft.run.parts import read_data

RECIPE = "launch/recipes/quickstart.toml"


def test_nothing_that_is_held_out_is_trained_on(tmp_path):
    config, said = load_config(RECIPE, [f"run.dir={tmp_path}"]), []
    data = read_data(config, said.append)
    tokenizer = load_tokenizer(config.model.hf_folder)
    train, held_out = (
        load_prompts(files, tokenizer, config.data).prompts for files in (config.data.train, config.data.held_out)
    )
    drawn = data.prompts.take(len(train))
    assert sorted(p.prompt_id for p in drawn) == sorted(p.prompt_id for p in train), "an epoch: each once, no other"
    assert not {p.text for p in drawn} & {p.text for p in held_out}
    assert [p.prompt_id for p in data.held_out] == [p.prompt_id for p in held_out][
        : config.evaluate.max_prompts or None
    ]
    assert data.canary.prompt_id in {p.prompt_id for p in train}
    assert said == [
        f"data: {len(train)} training prompts (0 too long and 0 without an answer left out), {len(data.held_out)} "
        "held out"
    ]


def test_fewer_held_out_prompts_if_the_recipe_says_so(tmp_path):
    config = load_config(RECIPE, [f"run.dir={tmp_path}", "evaluate.max_prompts=3"])
    assert len(read_data(config, lambda line: None).held_out) == 3


def test_prompts_that_ask_for_no_box_are_seen_before_anything_starts(tmp_path):
    said, source = [], "quickstart/word_problems"
    read_data(load_config(RECIPE, [f'verdict.modes={{"{source}" = "dapo_line"}}', f"run.dir={tmp_path}"]), said.append)
    assert said[1:] == [
        f"data: none of the 4256 prompts of '{source}' has the word 'answer:', and mode 'dapo_line' reads no other "
        "answer: let data.system_prompt or data.train ask for it, or choose another in verdict.modes"
    ]
    said.clear()
    asks = 'data.system_prompt="End with Answer: and the number."'
    read_data(
        load_config(RECIPE, [f'verdict.modes={{"{source}" = "dapo_line"}}', asks, "data.max_prompt_tokens=400",
                             f"run.dir={tmp_path}"]), said.append
    )  # fmt: skip
    assert len(said) == 1


def test_answers_of_a_benchmark_that_is_not_there(tmp_path):
    config = load_config(RECIPE, [f"run.dir={tmp_path}", "evaluate.samples_of={math500 = 1}"])
    with pytest.raises(RecipeError, match="names 'math500', which is no benchmark here: held_out"):
        read_data(config, lambda line: None)
