"""The commands from end to end on a small model: bits, casts, refusals, and what an interrupted one leaves behind."""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_tools import command, hf_to_megatron, megatron_to_hf, verify
from checkpoint_tools.megatron_folder import MegatronFolder
from checkpoint_tools.show import describe
from checkpoint_tools.show import main as inspect
from megatron_nft.weights.hf_tensors import HFTensors
from tests.unit.checkpoint_tools.conftest import make_hf


def tensors_of(folder):
    tensors = HFTensors(folder)
    return {name: tensors[name] for name in tensors.names}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def to_megatron(hf, out, *options):
    return hf_to_megatron.main(["--hf", str(hf), "--out", str(out), *options])


def to_hf(megatron, out, *options):
    return megatron_to_hf.main(["--megatron", str(megatron), "--out", str(out), *options])


def test_round_trip_and_what_comes_along(tmp_path, hf, capsys):
    assert to_megatron(hf, tmp_path / "m") == 0 and to_hf(tmp_path / "m", tmp_path / "back") == 0
    assert "hf_to_megatron: 100% |" in capsys.readouterr().err
    assert same(tensors_of(hf), tensors_of(tmp_path / "back"))
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((hf / name).read_text())
    assert {p.name for p in tmp_path.iterdir()} == {"model", "m", "back"}, "nothing else is left"


def test_the_vocabulary_travels_in_blocks_and_is_padded_with_zeros(tmp_path, hf, monkeypatch):
    monkeypatch.setattr(hf_to_megatron, "BLOCK_BYTES", 100 * 32 * 2)  # 100 rows
    hf_to_megatron.convert(hf, tmp_path / "m")
    stored = MegatronFolder(tmp_path / "m")
    table = stored.tensors["output_layer.weight"]
    assert [chunk.offset for chunk in table.chunks] == [(0, 0), (100, 0), (200, 0), (300, 0)]
    last = stored.read(table, table.chunks[-1])
    assert last.shape == (20, 32) and last[0].any() and not last[1:].any()
    assert verify.compare_tensors(hf, tmp_path / "m").passed


def test_large_models_get_shards_and_an_index(tmp_path, hf, megatron):
    megatron_to_hf.convert(megatron, tmp_path / "back", shard_bytes=20_000)
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(f.stat().st_size < 25_000 for f in files)
    assert same(tensors_of(hf), tensors_of(tmp_path / "back"))


def test_casts(tmp_path, hf):
    assert to_megatron(hf, tmp_path / "m", "--dtype", "float32") == 0
    assert MegatronFolder(tmp_path / "m").tensors["output_layer.weight"].dtype == torch.float32
    check = verify.compare_tensors(hf, tmp_path / "m")
    assert check.passed and "bfloat16 cast to float32" in check.words
    assert to_hf(tmp_path / "m", tmp_path / "back", "--dtype", "bfloat16") == 0
    assert same(tensors_of(hf), tensors_of(tmp_path / "back"))
    assert to_hf(tmp_path / "m", tmp_path / "wide") == 0
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


def test_a_tied_model_whose_folder_names_its_output_layer(tmp_path):
    hf = make_hf(tmp_path / "tied", files=1, tie_word_embeddings=True)
    index = json.loads((hf / "model.safetensors.index.json").read_text())
    tensors = load_file(hf / "model-00001-of-00001.safetensors")
    from safetensors.torch import save_file

    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, hf / "model.safetensors")
    (hf / "model.safetensors.index.json").unlink()
    assert to_megatron(hf, tmp_path / "m") == 0 and to_hf(tmp_path / "m", tmp_path / "back") == 0
    assert set(tensors_of(tmp_path / "back")) == set(index["weight_map"])
    assert verify.compare_folders(hf, tmp_path / "back").passed


def test_verify_finds_a_single_wrong_bit(hf, megatron, capsys):
    argv = ["--hf", str(hf), "--megatron", str(megatron), "--no-logits"]
    assert verify.main(argv) == 0
    assert capsys.readouterr().out == (
        "ok   checkpoint against the HF folder, bit by bit: 27 tensors\nverify: 1 passed, 0 failed\n"
    )
    stored = MegatronFolder(megatron)
    tensor = stored.tensors["decoder.layers.self_attention.linear_qkv.weight"]
    numbers = stored.read(tensor, tensor.at(1)[0])
    path = megatron / tensor.chunks[0].file
    data, pattern = bytearray(path.read_bytes()), numbers.view(torch.uint8).numpy().tobytes()
    data[data.index(pattern) + len(pattern) - 2] ^= 1  # in a value head of the second layer
    path.write_bytes(data)
    assert verify.main(argv) == 1
    assert "FAIL" in (out := capsys.readouterr().out) and "model.layers.1.self_attn.v_proj.weight" in out


def test_verify_tries_the_round_trip(tmp_path, hf, capsys):
    assert verify.main(["--hf", str(hf), "--scratch", str(tmp_path), "--no-logits"]) == 0
    assert "ok   round trip HF -> Megatron -> HF, bit by bit: 27 tensors" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_inspect(megatron, capsys):
    assert inspect([str(megatron), "--tensors"]) == 0
    text = capsys.readouterr().out
    for part in ("qwen2, 2 layers", "tp 1 x pp 1", "bfloat16", "not recorded", "2 x 96 x 32"):
        assert part in text
    assert inspect([str(megatron), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"]["dtypes"] == ["bfloat16"] and found["optimizer"] is None
    assert found["layout"] == {"tp": 1, "pp": 1, "vpp": 1}


def test_inspect_of_a_mixture_some_of_whose_layers_are_dense(tmp_path, monkeypatch):
    """Each layer has keys of its own there; what a run has recorded counts before what files tell."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
    make_hf(tmp_path / "hf", model_type="qwen3_moe", mlp_only_layers=[1], norm_topk_prob=True, **experts)
    hf_to_megatron.convert(tmp_path / "hf", tmp_path / "m")
    assert describe(tmp_path / "m")["layout"] == {"tp": 1, "pp": 1, "vpp": 1}
    recorded = {"tp": 2, "pp": 2, "cp": 1, "dp": 2, "vpp": 1, "ep": 2, "etp": 1}
    common = {"schedule": {"num_steps": 4}, "layout": recorded}
    monkeypatch.setattr(MegatronFolder, "read_common", lambda folder: common)
    assert describe(tmp_path / "m")["layout"] == recorded
    del common["layout"]
    assert describe(tmp_path / "m")["layout"] == {"tp": 1, "pp": 1, "vpp": 1}, "as the files are cut"


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_an_existing_folder_stays_unless_told_otherwise(tmp_path, hf, megatron, capsys):
    before = (megatron / ".metadata").stat().st_mtime_ns
    assert to_megatron(hf, megatron) == 2
    assert "is there already; name another folder, or give --overwrite" in capsys.readouterr().err
    assert (megatron / ".metadata").stat().st_mtime_ns == before
    assert to_megatron(hf, megatron, "--overwrite") == 0
    assert (megatron / ".metadata").stat().st_mtime_ns > before


def test_overwrite_takes_no_other_folders(tmp_path, hf, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("")
    assert to_megatron(hf, home, "--overwrite") == 2
    assert "neither a checkpoint nor a model" in capsys.readouterr().err and (home / "thesis.tex").exists()
    for out in (hf, tmp_path):
        assert to_megatron(hf, out, "--overwrite") == 2
        assert "is what is read from" in capsys.readouterr().err
    assert hf.exists()


def test_arguments_that_name_nothing(tmp_path, megatron, capsys):
    assert to_megatron(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "no such folder" in capsys.readouterr().err
    shutil.rmtree(megatron / "hf")
    assert to_hf(megatron, tmp_path / "out") == 2
    assert "has no hf/config.json" in capsys.readouterr().err


def drop_a_shard(hf):
    (hf / "model-00002-of-00003.safetensors").unlink()


def cut_a_shard(hf):
    file = hf / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def swap_the_index(hf):
    index = hf / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    found["weight_map"]["model.embed_tokens.weight"] = "model-00002-of-00003.safetensors"
    index.write_text(json.dumps(found))


def break_the_index(hf):
    (hf / "model.safetensors.index.json").write_text('{"weight_map": ')


def change_the_config(hf):
    config = hf / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_key_value_heads": 4}))


def take_a_layer_away(hf):
    config = hf / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_shard, "model-00002-of-00003.safetensors: missing, although the index names it"),
        (cut_a_shard, "model-00002-of-00003.safetensors: not a whole safetensors file"),
        (swap_the_index, "although the index says so; fetch both again"),
        (break_the_index, "not an index with a weight_map"),
        (change_the_config, "k_proj.weight is (16, 32), by config.json it is (32, 32)"),
        (take_a_layer_away, "12 tensors have no place in a qwen2 model of this config.json"),
    ],
)
def test_a_broken_hf_folder(tmp_path, hf, damage, message, capsys):
    damage(hf)
    assert to_megatron(hf, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


# --- Interrupted -----------------------------------------------------------------------------------------------------


def test_no_room_is_found_out_at_once(tmp_path, hf, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    assert to_megatron(hf, tmp_path / "out") == 1
    assert "0.07 GB needed, 0.00 GB free; make room" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


@pytest.fixture
def file_limit():
    """Writes beyond so many bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("convert", [to_megatron, to_hf])
def test_a_write_that_fails_halfway(tmp_path, hf, megatron, convert, file_limit, capsys):
    source = hf if convert is to_megatron else megatron
    file_limit(20_000)
    status = convert(source, tmp_path / "out")
    file_limit(resource.RLIM_INFINITY)
    assert status == 1
    error = capsys.readouterr().err
    assert "File too large" in error and "Traceback" not in error
    assert {p.name for p in tmp_path.iterdir()} == {"model", "megatron"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("convert", [to_megatron, to_hf])
def test_a_signal_leaves_nothing(tmp_path, hf, megatron, convert, number, monkeypatch, capsys):
    seen = []

    def add(self, num_bytes):
        seen.append(num_bytes)
        if len(seen) == 5:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(command.Progress, "add", add)
    source = hf if convert is to_megatron else megatron
    assert convert(source, tmp_path / "out") == 130
    assert "interrupted; nothing was published" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"model", "megatron"}


def test_a_signal_of_which_torch_makes_another_error(capsys):
    """As its file writer does, in C++, of a KeyboardInterrupt in the middle of a write."""

    def body(arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos 704 vs 598") from None

    assert command.run(body, argparse.ArgumentParser(prog="x"), []) == 130
    assert capsys.readouterr().err == "x: interrupted; nothing was published, start it again\n"


def test_a_mistake_of_the_tools_keeps_its_traceback():
    def body(arguments):
        raise KeyError("a bug")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError):
        command.run(body, argparse.ArgumentParser(), [])
    assert signal.getsignal(signal.SIGTERM) == before, "handlers are put back"


KILLED = """
import os, signal, sys
from checkpoint_tools import command, hf_to_megatron
seen = []

def add(self, num_bytes):
    seen.append(num_bytes)
    if len(seen) > 5:
        os.kill(os.getpid(), signal.SIGKILL)

command.Progress.add = add
hf_to_megatron.main(sys.argv[1:])
"""


def test_a_killed_one_leaves_no_checkpoint_and_the_next_succeeds(tmp_path, hf):
    out = tmp_path / "out"
    arguments = ["--hf", str(hf), "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert {p.name for p in tmp_path.iterdir()} == {"model", ".out.partial"}
    assert hf_to_megatron.main(arguments) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out"} and verify.compare_tensors(hf, out).passed
