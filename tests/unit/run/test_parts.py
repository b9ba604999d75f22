"""What a run reads before it starts anything: the problems that it trains on, and those that it is measured by."""

from megatron_nft.config import load_config
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
