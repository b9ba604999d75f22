"""Weights that are not what config.json says are refused, in the same words wherever they are read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_tools import hf_to_megatron
from megatron_nft.config import load_config
from megatron_nft.families.family import ModelFolderError
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.weight_files import check_weights, read_tensors
from tests.unit.checkpoint_tools.conftest import make_hf

RECIPE = ["data.train=['x.jsonl']", "data.max_prompt_tokens=16", "rollout.max_answer_tokens=16"]
EMBEDDING, HEAD, Q = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.weight"


def change(folder, changes):
    """The model of a single file, with its tensors changed."""
    (path,) = folder.glob("model*.safetensors")
    tensors = load_file(path)
    changes(tensors)
    path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def projections(tensors):
    return [name for name in tensors if name.endswith("proj.weight")]


def fp8_block(tensors):
    for name in projections(tensors):
        tensors[name], tensors[f"{name}_scale_inv"] = tensors[name].to(torch.float8_e4m3fn), torch.ones(1, 1)


def fp8_compressed(tensors):
    for name in projections(tensors):
        tensors[name], tensors[f"{name}_scale"] = tensors[name].to(torch.float8_e4m3fn), torch.ones(len(tensors[name]))


def bitsandbytes_int8(tensors):
    for name in projections(tensors):
        tensors[name] = tensors[name].to(torch.int8)
        tensors[name.replace(".weight", ".SCB")] = torch.ones(len(tensors[name]))


def bitsandbytes_4_bit(tensors):
    for name in projections(tensors):
        tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"] = torch.ones(2)


def gptq(tensors):
    for name in projections(tensors):
        weight = tensors.pop(name)
        tensors[name.replace("weight", "qweight")] = torch.zeros(4, len(weight), dtype=torch.int32)


def fp8_without_scales(tensors):
    tensors[Q] = tensors[Q].to(torch.float8_e5m2)


def ternary_in_bfloat16(tensors):
    """BitNet: the numbers are of a known format, what scales them has a name that is left over."""
    tensors[f"{Q}_scale"] = torch.ones(1, dtype=torch.bfloat16)


def booleans(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"] > 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (fp8_block, "is of F8_E4M3; known are F64, F32, F16, BF16; quantized weights are not trained"),
        (fp8_compressed, "is of F8_E4M3; known are"),
        (bitsandbytes_int8, "is of I8; known are"),
        (bitsandbytes_4_bit, "is of U8; known are"),
        (gptq, "no tensor 'model.layers.0.self_attn.q_proj.weight'"),
        (fp8_without_scales, "q_proj.weight is of F8_E5M2; known are"),
        (ternary_in_bfloat16, "1 tensors have no place in a qwen2 model of this config.json, the first is"),
        (booleans, "model.norm.weight is of BOOL; known are"),
        (lambda t: t.pop(HEAD), "no tensor 'lm_head.weight'; config.json says tie_word_embeddings = false"),
        (lambda t: t.pop("model.layers.1.self_attn.k_proj.bias"), "no tensor 'model.layers.1.self_attn.k_proj.bias'"),
        (lambda t: t.update({"v_head.summary.weight": torch.ones(1)}), "1 tensors have no place in a qwen2 model"),
        (lambda t: t.update({"score.weight": torch.ones(1)}), "the first is 'score.weight'"),
        (lambda t: t.update({Q: t[Q][:16].clone()}), "q_proj.weight is (16, 32), by config.json it is (32, 32)"),
        (lambda t: t.update({EMBEDDING: t[EMBEDDING][:300].clone()}), "is (300, 32), by config.json it is (301, 32)"),
        (lambda t: t.update({Q: t[Q].float()}), "is of F32, model.layers.0.self_attn.q_proj.weight of BF16"),
        (lambda t: t.update({Q: t[Q].flatten()}), "q_proj.weight is (1024,), by config.json it is (32, 32)"),
    ],
)  # fmt: skip
def test_weights_that_training_and_conversion_refuse_alike(tmp_path, damage, words):
    folder = change(make_hf(tmp_path / "model", files=1), damage)
    said = []
    for read in (
        lambda: check_weights(folder, read_hf_config(folder)),
        lambda: hf_to_megatron.convert(folder, tmp_path / "megatron"),
        lambda: load_config(None, [f"model.path={json.dumps(str(folder))}", *RECIPE]),
    ):
        with pytest.raises(ModelFolderError) as caught:
            read()
        said.append(str(caught.value))
    assert words in said[0] and str(folder) in said[0] and len(set(said)) == 1, said


@pytest.mark.parametrize(
    ("head", "is_refused"),
    [
        (lambda e: e.clone(), False),
        (lambda e: -e, True),
        (lambda e: torch.cat([e[:-1], e[-1:] + 1]), True),
        (lambda e: e.float(), True),
        (lambda e: e[:300].clone(), True),
    ],
    ids=["the embedding", "negative", "one row differs", "another format", "fewer rows"],
)
def test_a_tied_model_with_a_head_of_its_own(tmp_path, head, is_refused):
    folder = make_hf(tmp_path / "model", files=1, tie_word_embeddings=True)
    change(folder, lambda tensors: tensors.update({HEAD: head(tensors[EMBEDDING])}))
    if not is_refused:
        check_weights(folder, read_hf_config(folder))
        return
    with pytest.raises(ModelFolderError, match=r"tie_word_embeddings = true, but lm_head\.weight is not model\.embed"):
        check_weights(folder, read_hf_config(folder))


def test_formats_that_differ_between_parameters_are_fine_and_a_cast_takes_all(tmp_path):
    """Norms in float32 beside matrices in bfloat16; and conversion to one format is the remedy for the rest."""
    folder = change(
        make_hf(tmp_path / "model", files=1),
        lambda t: t.update({n: t[n].float() for n in t if "norm" in n}),
    )
    check_weights(folder, read_hf_config(folder))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {Q: tensors[Q].float()}, folder / "model.safetensors")
    hf_to_megatron.convert(folder, tmp_path / "megatron", dtype=torch.float32)


def test_older_folders_name_their_frequencies(tmp_path):
    folder = make_hf(tmp_path / "model", files=1)
    change(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    check_weights(folder, read_hf_config(folder))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a whole safetensors file (0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 988\n", "not a whole safetensors file"),
        ((9).to_bytes(8, "little") + b'{"a": [1]' + b"0" * 8, "not a whole safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "not a whole safetensors file"),
        ((59).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,0]}} ', "not a whole"),
        ((2).to_bytes(8, "little") + b"{}" + b"rest", "its header says"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path, content, words):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelFolderError) as caught:
        read_tensors(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "\xff",
              '{"weight_map": {"a": "../model.safetensors"}}'],
)  # fmt: skip
def test_an_index_that_is_none(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="latin-1")
    with pytest.raises(ModelFolderError, match="fetch it again"):
        read_tensors(tmp_path)


def test_headers_are_read_as_safetensors_reads_them(tmp_path):
    folder = make_hf(tmp_path / "model")
    tensors = read_tensors(folder)
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            found = tensors[name]
            assert (found.file, found.shape, found.dtype) == (path, tuple(tensor.shape), "BF16")
            numbers = path.read_bytes()[found.start : found.end]
            assert numbers == tensor.view(torch.uint8).numpy().tobytes()
