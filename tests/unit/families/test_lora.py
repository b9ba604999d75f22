"""Adapters' tables: every family's, under PEFT's names, and cut as the weights are."""

import json
from dataclasses import replace
from math import prod

import pytest
import torch

from megatron_nft.families.adapter_folder import HARMLESS, check_adapter
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.families.lora import TARGETS, Adapters, adapter_shapes, adapter_table, peft_config, peft_targets
from megatron_nft.families.rules import along
from megatron_nft.weights.layouts import parts, to_shard
from tests.parallel.families import make_folder

ADAPTERS = Adapters(rank=4, alpha=6.0, rslora=False, targets=TARGETS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder("qwen2", "float32", 1, tmp_path_factory.mktemp("m") / "model")


def saved(folder, to, **changes):
    """A PEFT folder that peft has written."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    hf = read_hf_config(folder)
    settings = {"r": 4, "lora_alpha": 6.0, "target_modules": peft_targets(hf, ADAPTERS)} | changes
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**settings)).save_pretrained(to)
    return to


def test_names_and_shapes_are_those_that_peft_writes(folder, tmp_path):
    from safetensors import safe_open

    hf = read_hf_config(folder)
    saved(folder, tmp_path / "a")
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert adapter_shapes(hf, ADAPTERS) == theirs
    check_adapter(tmp_path / "a", hf, ADAPTERS)
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    ours = peft_config(hf, ADAPTERS, base=written["base_model_name_or_path"])
    assert {k: sorted(v) if isinstance(v, list) else v for k, v in ours.items() if k != "task_type"} == {
        k: sorted(written[k]) if isinstance(written[k], list) else written[k] for k in ours if k != "task_type"
    }


@pytest.mark.parametrize("tp", [1, 2])
def test_what_ranks_have_is_the_whole_and_gives_the_product(folder, tp):
    """The delta of each rank's parts is its part of the whole delta."""
    hf = read_hf_config(folder)
    for rule in adapter_table(hf, ADAPTERS):
        tensors = {name: torch.randn(shape) for name, shape in rule.hf_shapes({"layer": 1}).items()}
        found = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
        for place in along("tp", tp):
            shard = to_shard(rule, list(tensors.values()), place)
            assert shard.shape == rule.layout.shard_shape(place) and shard.numel() == prod(shard.shape)
            if rule.is_owned_at(place):
                for part in parts(rule, {"layer": 1}, shard, place):
                    part.copy_to(found[part.name])
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items()), rule.megatron


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"r": 8}, r"r = 8, and lora.rank = 4"),
        ({"lora_alpha": 4}, r"lora_alpha = 4, and lora.alpha = 6.0"),
        ({"use_rslora": True}, r"use_rslora = True, and lora.rslora = False"),
        ({"use_dora": True}, r"use_dora = True is not supported"),
        ({"target_modules": ["q_proj", "v_proj"]}, r"tensors are not those of lora.targets"),
        ({"rank_pattern": {"q_proj": 2}}, r"rank_pattern = .* is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = .* is not supported"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights = 'pissa': peft changes the model.*weight_conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights = 'pissa_niter_4': peft changes the model"),
        ({"init_lora_weights": "olora"}, r"init_lora_weights = 'olora': peft changes the model"),
        ({"alora_invocation_tokens": [5, 6]}, r"alora_invocation_tokens = \[5, 6\] is not supported.*merge_and_unload"),
        ({"trainable_token_indices": [5]}, r"trainable_token_indices = \[5\] is not supported"),
    ],
)
def test_other_adapters_are_refused(folder, tmp_path, changes, why):
    with pytest.raises(ModelFolderError, match=why):
        check_adapter(saved(folder, tmp_path / "a", **changes), read_hf_config(folder), ADAPTERS)


@pytest.mark.parametrize("start", [False, "gaussian", "orthogonal"])
def test_a_plain_adapter_is_one_however_a_and_b_began(folder, tmp_path, start):
    check_adapter(saved(folder, tmp_path / "a", init_lora_weights=start), read_hf_config(folder), ADAPTERS)


def test_a_pissa_adapter_that_peft_has_made_plain(folder, tmp_path):
    """The remedy that is given; its rank is twice as large."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    hf, start = read_hf_config(folder), tmp_path / "start"
    settings = LoraConfig(r=4, lora_alpha=6.0, target_modules=peft_targets(hf, ADAPTERS), init_lora_weights="pissa")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings)
    model.peft_config["default"].init_lora_weights = True  # as peft's own guide has it
    model.save_pretrained(start)
    model.peft_config["default"].init_lora_weights = "pissa"
    model.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=str(start))
    check_adapter(tmp_path / "a", hf, replace(ADAPTERS, rank=8, alpha=12.0))


def test_what_a_newer_peft_may_have_besides(folder, tmp_path):
    """Every key that PEFT has is known not to matter, or refused when it is set."""
    from dataclasses import fields

    from peft import LoraConfig

    plain = saved(folder, tmp_path / "a") / "adapter_config.json"
    text = plain.read_text()
    for key in [field.name for field in fields(LoraConfig)] + ["use_something_new"]:
        if key in HARMLESS:
            continue
        plain.write_text(json.dumps(json.loads(text) | {key: {"some": 1}}))
        with pytest.raises(ModelFolderError, match=rf"{key} = "):
            check_adapter(plain.parent, read_hf_config(folder), ADAPTERS)


def test_no_folder_and_another_model(folder, tmp_path):
    with pytest.raises(ModelFolderError, match=r"has no adapter_config.json"):
        check_adapter(tmp_path, read_hf_config(folder), ADAPTERS)
    hf, adapter = read_hf_config(folder), saved(folder, tmp_path / "a")
    with pytest.raises(ModelFolderError, match=r"by config.json it is"):
        check_adapter(adapter, replace(hf, intermediate_size=2 * hf.intermediate_size), ADAPTERS)
    with pytest.raises(ModelFolderError, match=r"layers.2.*is left over"):
        check_adapter(adapter, replace(hf, num_hidden_layers=2), ADAPTERS)
