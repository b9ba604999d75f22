"""A family is one file: dropped into the folder it is found, read, named, shaped, converted and planned."""

import json
import subprocess
import sys
from textwrap import dedent

import pytest
import torch

import megatron_nft.families
from checkpoint_tools import hf_to_megatron, megatron_to_hf
from megatron_nft.config import ActorConfig
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.families.parameters import parameters
from megatron_nft.families.registry import families, family_of, table_of
from megatron_nft.plan.buckets import num_tensors
from megatron_nft.plan.parameters import parameters_of_rank
from megatron_nft.weights.hf_tensors import HFTensors
from megatron_nft.weights.plan import plan_weights
from tests.unit.checkpoint_tools.conftest import CONFIG, make_hf

PHI3 = '''
    """Phi-3: a Llama with queries, keys and values in one HF tensor, gate and up in another."""

    from dataclasses import replace

    from megatron_nft.families.llama_like import ATTENTION, HF, MLP, LlamaLike

    ONE_TENSOR = {
        f"{ATTENTION}.linear_qkv.weight": (f"{HF}.self_attn.qkv_proj.weight",),
        f"{MLP}.linear_fc1.weight": (f"{HF}.mlp.gate_up_proj.weight",),
    }


    class Phi3(LlamaLike):
        def rules(self, hf):
            return [replace(rule, hf=ONE_TENSOR.get(rule.megatron, rule.hf)) for rule in super().rules(hf)]


    FAMILY = Phi3(model_type="phi3", defaults={"sliding_window": None})
'''


@pytest.fixture
def phi3(tmp_path, monkeypatch):
    """The family as a file of its own."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "phi3_of_a_test.py").write_text(dedent(PHI3))
    monkeypatch.setattr(megatron_nft.families, "__path__", [*megatron_nft.families.__path__, str(folder)])
    yield
    sys.modules.pop("megatron_nft.families.phi3_of_a_test", None)
    table_of.cache_clear()


def test_every_family_is_in_a_file_of_its_name():
    assert list(families()) == ["llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss"]


def test_a_family_that_is_not_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "phi3"}))
    with pytest.raises(
        ModelFolderError, match=r"model_type 'phi3' is not supported; supported: llama, mistral, mixtral, qwen2"
    ):
        read_hf_config(tmp_path)


def test_one_file_is_a_family(phi3, tmp_path):
    folder = make_hf(tmp_path / "model", model_type="phi3", sliding_window=48)
    hf = read_hf_config(folder)
    assert hf.model_type == "phi3" and hf.sliding_window == 48 and not hf.qkv_bias
    assert not family_of(hf).transformer_arguments(hf)["add_qkv_bias"]
    shapes = {name: shape for p in parameters(hf) for name, shape in p.hf_shapes.items()}
    assert shapes["model.layers.1.self_attn.qkv_proj.weight"] == (32 + 16 + 16, 32)
    assert shapes["model.layers.0.mlp.gate_up_proj.weight"] == (2 * 48, 32)
    assert num_tensors(hf) == len(shapes) == 2 * 6 + 3
    whole = sum(p.numel for p in parameters(hf))
    padding = (320 - 301) * 32 * 2  # the embedding's and the output layer's rows, to multiples of 64
    assert parameters_of_rank(hf, ActorConfig(), 0).elements == whole + padding


def test_its_fused_tensors_go_to_a_checkpoint_and_back(phi3, tmp_path):
    folder = make_hf(tmp_path / "model", model_type="phi3", sliding_window=None)
    hf_to_megatron.convert(folder, tmp_path / "megatron")
    megatron_to_hf.convert(tmp_path / "megatron", tmp_path / "back")
    before, after = HFTensors(folder), HFTensors(tmp_path / "back")
    assert sorted(before.names) == sorted(after.names)
    assert all(torch.equal(before[name], after[name]) for name in before.names)


def test_its_fused_tensors_stand_whole_in_a_bucket(phi3, tmp_path):
    table = table_of(read_hf_config(make_hf(tmp_path / "model", model_type="phi3", sliding_window=None)))
    shard = ("decoder.layers.1.self_attention.linear_qkv.weight", torch.zeros(32, 32))
    (bucket,) = plan_weights([shard], table, places=[(), ()], dtype=torch.float32, bucket_bytes=None).buckets
    assert {name: spec.shape for name, spec in bucket.tensors.items()} == {
        "model.layers.1.self_attn.qkv_proj.weight": (64, 32)
    }


def test_families_load_nothing_heavy():
    code = """
        import sys
        from megatron_nft.families import hf_config, parameters, registry
        registry.families()
        print(set(sys.modules) & {"torch", "numpy", "ray", "vllm", "megatron", "transformers", "pydantic"})
    """
    found = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
