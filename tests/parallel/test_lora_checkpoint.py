"""Checkpoints of adapters: they hold nothing of the model, go on bit by bit in the same layout and to rounding in any
other, belong to one model only, and become the folders that peft and transformers read."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from checkpoint_tools import megatron_to_hf, verify
from checkpoint_tools.megatron_folder import MegatronFolder
from checkpoint_tools.show import as_text, describe
from megatron_nft.families.adapter_folder import CONFIG, WEIGHTS
from tests.parallel.families import make_folder
from tests.parallel.oracle import save_random
from tests.parallel.ranks import run_ranks
from tests.parallel.test_checkpoint import HALF, SETTINGS, build, name_of, same_bits, six_updates, whole
from tests.parallel.test_parity import hf_tensors

pytestmark = pytest.mark.parallel
LORA = ["lora.rank=4", "lora.dropout=0.1"]
LAYOUTS = {(1, 1, 1): [], (2, 1, 1): ["actor.sequence_parallel=true"], (1, 2, 2): ["actor.recompute=full"]}
"""(tp, pp, dp), and what is special."""
NO_DROPOUT = "lora.dropout=0.0"  # whose numbers are a layout's own


def straight(rank, master, folder, layout, more):
    """Six updates, a save after the third and one at the end."""
    worker, updates = build(rank, master, folder, layout, [*LORA, *LAYOUTS[layout], *more])
    first = hf_tensors(worker, lambda parameter: parameter)
    worker.train_step(updates[:HALF])
    worker.begin_save(f"{folder}/{name_of(layout)}", HALF, HALF)
    metrics = worker.train_step(updates[HALF:])
    worker.finish_save()
    worker.save(f"{folder}/{name_of(layout)}_end")
    return metrics, hf_tensors(worker, lambda parameter: parameter), first


def resumed(rank, master, folder, layout, other, more):
    """The last three updates, from another layout's save."""
    worker, updates = build(rank, master, folder, layout, [*LORA, *LAYOUTS[layout], *more])
    worker.load(f"{folder}/{name_of(other)}")
    metrics = worker.train_step(updates[HALF:])
    if other == layout:
        worker.save(f"{folder}/{name_of(layout)}_resumed")
    return metrics, hf_tensors(worker, lambda parameter: parameter)


@pytest.fixture(scope="module")
def saves(tmp_path_factory):
    """With and without dropout: the folder with all layouts' saves, and what came of the straight runs."""
    model = make_folder("qwen2 tied", "float32", 5, tmp_path_factory.mktemp("base") / "model")
    found = {}
    for more in ((), (NO_DROPOUT,)):
        folder = tmp_path_factory.mktemp("saves")
        (folder / "model").symlink_to(model)
        outcomes = {}
        for layout in LAYOUTS:
            for end in ("", "_end", "_resumed"):
                (folder / f"{name_of(layout)}{end}").mkdir()
            ranks = run_ranks(int(np.prod(layout)), straight, str(folder), layout, more)
            outcomes[layout] = (
                *whole([rank[:2] for rank in ranks]),
                {n: t for rank in ranks for n, t in rank[2].items()},
            )
        found[more] = folder, outcomes
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_the_same_layout_goes_on_bit_by_bit_dropout_and_all(saves, layout):
    folder, outcomes = saves[()]
    metrics, weights = whole(run_ranks(int(np.prod(layout)), resumed, str(folder), layout, layout, ()))
    assert metrics == outcomes[layout][0]
    assert all((weights[name] == tensor).all() for name, tensor in outcomes[layout][1].items())
    same_bits(folder / f"{name_of(layout)}_end", folder / f"{name_of(layout)}_resumed")
    plain = saves[NO_DROPOUT,][1][layout][1]
    assert max(abs(weights[name] - plain[name]).max() for name in plain) > 1e-4, "dropout changed nothing"


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_adapters_begin_alike_and_go_on_alike_in_every_layout(saves, layout):
    folder, outcomes = saves[NO_DROPOUT,]
    one = outcomes[1, 1, 1]
    _, weights, first = outcomes[layout]
    assert all((first[name] == tensor).all() for name, tensor in one[2].items())
    assert max(abs(weights[name] - tensor).max() for name, tensor in one[1].items()) < 1e-6
    others = list(LAYOUTS)
    other = others[others.index(layout) - 1]
    _, again = whole(run_ranks(int(np.prod(layout)), resumed, str(folder), layout, other, (NO_DROPOUT,)))
    assert max(abs(again[name] - tensor).max() for name, tensor in weights.items()) < 1e-6


def test_nothing_of_the_model_is_in_it(saves):
    stored = MegatronFolder(saves[()][0] / "tp2pp1dp1")
    assert stored.weights and all("lora_" in key for key in stored.tensors)
    numbers = sum(int(np.prod(tensor.shape)) for tensor in stored.weights.values())
    assert sum(int(np.prod(t.shape)) for t in stored.tensors.values()) == 4 * numbers  # and master weights, two moments


def test_what_inspect_says(saves):
    said = as_text(describe(saves[()][0] / "tp1pp2dp2"), with_tensors=False)
    assert "rank 4, alpha 8, of linear_qkv, linear_proj, linear_fc1, linear_fc2; belongs to" in said
    assert "tp 1 x pp 2 x cp 1 x dp 2" in said


def refusals(rank, master, folder, wrong):
    """What loading its own layout's save says with other settings."""
    worker, _ = build(rank, master, folder, (1, 1, 1), wrong)
    try:
        worker.load(f"{folder}/tp1pp1dp1")
    except Exception as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["lora.rank=8"], r"has adapters with lora.rank = 4, now it is 8"),
        (["lora.rank=4", "lora.alpha=4"], r"lora.alpha = 8.0, now it is 4.0"),
        ([], r"has adapters of .*model only, and lora.rank is 0"),
    ],
)
def test_other_adapters_are_refused(saves, wrong, why):
    (said,) = run_ranks(1, refusals, str(saves[()][0]), wrong)
    assert re.search(why, said), said


def test_another_base_is_refused(saves, tmp_path):
    """One number of it is another; the same in other files is the same."""
    folder = saves[()][0]
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "tp1pp1dp1").symlink_to(folder / "tp1pp1dp1")
    file = tmp_path / "model" / "model.safetensors"
    assert run_ranks(1, refusals, str(tmp_path), LORA) == ["loaded"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (said,) = run_ranks(1, refusals, str(tmp_path), LORA)
    assert "its adapters belong to" in said and "are others" in said


def exported(rank, master, folder, layout):
    worker, _ = build(rank, master, folder, layout, [*LORA, *LAYOUTS[layout]])
    worker.load(f"{folder}/{name_of(layout)}")
    return hf_tensors(worker, lambda parameter: parameter)


def test_a_peft_folder_and_a_whole_model_of_it(saves, tmp_path, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, layout = saves[()][0], (2, 1, 1)
    source = folder / name_of(layout)
    (source / "hf").mkdir()
    shutil.copy(folder / "model" / "config.json", source / "hf")
    assert megatron_to_hf.main(["--megatron", str(source), "--out", str(tmp_path / "adapter")]) == 0
    assert f"{tmp_path / 'adapter'}: a PEFT folder of {source}" in capsys.readouterr().out
    assert verify.main(["--hf", str(folder / "model"), "--megatron", str(source), "--no-logits"]) == 1
    remedy = f"convert megatron-to-hf --megatron {source} --base {folder / 'model'} --out DIR"
    assert remedy in capsys.readouterr().err
    expected = {n: t for rank in run_ranks(2, exported, str(folder), layout) for n, t in rank.items()}
    found = load_file(tmp_path / "adapter" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all((found[name].numpy() == tensor).all() for name, tensor in expected.items())
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["r"] == 4
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "adapter")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        said = with_adapter(tokens).logits
        megatron_to_hf.convert(source, tmp_path / "whole", base=folder / "model")
        whole_model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
        plain = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        assert (whole_model(tokens).logits - said).abs().max() < 1e-4
        assert (plain(tokens).logits - said).abs().max() > 1e-2


# --- A real model's size ---------------------------------------------------------------------------------------------

HALF_BILLION = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 32768,
}  # fmt: skip


def saved_once(rank, master, folder):
    """One update of adapters of a model in bf16, and a save."""
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config
    from megatron_nft.data.packing import pack

    model = f"model.path={json.dumps(f'{folder}/model')}"
    lines = [model, *SETTINGS, "actor.tp=1", "actor.precision=bf16", "lora.rank=8"]
    worker = Worker(load_config("launch/recipes/quickstart.toml", lines), rank=rank, master=master)
    (update,) = pack([six_updates()[0][:1]], num_updates=1, dp=1, tokens_per_microbatch=600).updates
    worker.train_step([update[0]])
    worker.save(f"{folder}/saved")
    worker.shutdown()


@pytest.mark.night(
    "the bytes of a model of half a billion parameters: a minute, for a figure that follows from the shapes"
)
def test_two_percent_of_a_whole_models_bytes(tmp_path):
    from transformers import Qwen2Config

    from megatron_nft.config import load_config
    from megatron_nft.families.hf_config import read_hf_config
    from megatron_nft.plan.disk import plan_disk

    save_random(Qwen2Config(**HALF_BILLION), tmp_path / "model", dtype="bfloat16")
    (tmp_path / "saved").mkdir()
    run_ranks(1, saved_once, str(tmp_path), timeout_s=600.0)
    written = sum(file.stat().st_size for file in (tmp_path / "saved").rglob("*") if file.is_file())
    lines = [f"model.path={tmp_path / 'model'}", "actor.precision=bf16"]
    config, hf = load_config("launch/recipes/quickstart.toml", lines), read_hf_config(tmp_path / "model")
    whole = plan_disk(config, hf).checkpoint
    print(f"\n  adapters {written:,} bytes, the whole model {whole:,}: {written / whole:.2%}")
    assert written < 0.02 * whole
