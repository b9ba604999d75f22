"""What a run reads before it starts anything: the problems that it trains on, and those that it is measured by."""

import json
import shutil
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checkpoint_tools import hf_to_megatron
from megatron_nft.config import RecipeError, load_config
from megatron_nft.data.benchmarks import prompts_of
from megatron_nft.data.prompts import load_prompts, load_tokenizer
from megatron_nft.evaluate import evaluate_benchmarks
from megatron_nft.families.family import ModelFolderError
from megatron_nft.run.parts import read_data

RECIPE, MODEL = "launch/recipes/quickstart.toml", Path("tests/assets/quickstart/model")


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
    assert [p.prompt_id for p in prompts_of(data.held_out)] == [p.prompt_id for p in held_out]
    assert data.canary.prompt_id in {p.prompt_id for p in train}
    assert len(data.canary.token_ids_P) == max(len(p.token_ids_P) for p in train)
    assert said == [
        f"data: {len(train)} training prompts (0 too long and 0 without an answer left out), {len(held_out)} held out"
    ]


def test_held_out_files_are_read_as_an_evaluation_reads_them(tmp_path):
    """The first so many of each file; repeats are one problem; one too long is counted, and said."""
    table = pq.read_table("tests/assets/quickstart/held_out.parquet")
    row = table.slice(0, 1).to_pylist()[0]
    long = row | {"prompt": [{"role": "user", "content": "Zoe has 5 coins. " * 60}], "extra_info": {"index": 999}}
    many = pa.Table.from_pylist(table.slice(20, 4).to_pylist() * 32)
    pq.write_table(pa.Table.from_pylist([*table.slice(0, 7).to_pylist(), long]), tmp_path / "first.parquet")
    pq.write_table(many, tmp_path / "repeated.parquet")
    files = json.dumps([str(tmp_path / name) for name in ("first.parquet", "repeated.parquet")])
    said = []

    def held_out(*overrides):
        config = load_config(RECIPE, [f"run.dir={tmp_path}", f"data.held_out={files}", *overrides])
        return [(b.name, len(b.prompts), b.num_too_long) for b in read_data(config, said.append).held_out]

    assert held_out() == [("first", 7, 1), ("repeated", 4, 0)]
    assert said[0].endswith("12 held out") and said[1:3] == [
        "data: first: 7 prompts asked (1 too long: not asked, and wrong)",
        "data: repeated: 4 prompts asked (the file has each 32 times)",
    ]
    assert held_out("evaluate.max_prompts=3") == [("first", 3, 0), ("repeated", 3, 0)]
    assert held_out("data.held_out=[]") == []


@pytest.mark.parametrize("which", ["model.path", "model.reference"])
def test_weights_are_looked_at_before_anything_starts(tmp_path, which):
    """A folder of another format: conversion's words, of training and evaluation alike."""
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = []
    with pytest.raises(ModelFolderError) as caught:
        hf_to_megatron.convert(folder, tmp_path / "megatron")
    said.append(str(caught.value))
    config = load_config(RECIPE, [f"run.dir={tmp_path}", f"{which}={folder}"])
    with pytest.raises(ModelFolderError) as caught:
        read_data(config, lambda line: None)
    said.append(str(caught.value))
    if which == "model.path":
        with pytest.raises(ModelFolderError) as caught:
            evaluate_benchmarks(config, tmp_path / "out")
        said.append(str(caught.value))
    assert set(said) == {f"{folder}: no model.safetensors and no model.safetensors.index.json"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"head_dim": 64}, "head_dim = 64, but vLLM takes hidden_size / num_attention_heads = 32 for a qwen2 model"),
        ({"num_attention_heads": 8}, "vLLM's CPU engine has no kernel for head_dim = 16; it has them for 32, 64, 80"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}},
            "yarn's factor 2 x original_max_position_embeddings 64 = 128 positions, of which vLLM has no more",
        ),
    ],
)
def test_what_vllm_would_run_otherwise_is_refused_before_anything_starts(tmp_path, keys, words):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(config))
    config = load_config(RECIPE, [f"run.dir={tmp_path}", f"model.path={folder}"], checks_weights=False)
    with mock.patch("megatron_nft.run.parts.check_weights"), pytest.raises(ModelFolderError) as caught:
        read_data(config, lambda line: None)
    assert words in str(caught.value) and str(folder) in str(caught.value)
    with mock.patch("megatron_nft.evaluate.check_weights"), pytest.raises(ModelFolderError) as caught:
        evaluate_benchmarks(config, tmp_path / "out")
    assert words in str(caught.value)


def test_prompts_that_ask_for_no_box_are_seen_before_anything_starts(tmp_path):
    said, source = [], "quickstart/word_problems"
    read_data(load_config(RECIPE, [f'verdict.modes={{"{source}" = "dapo_line"}}', f"run.dir={tmp_path}"]), said.append)
    assert said[1:] == [
        f"data: none of the 4256 prompts of '{source}' has the word 'answer:', and mode 'dapo_line' reads no other "
        "answer: let data.system_prompt or the data ask for it, or choose another in verdict.modes"
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
