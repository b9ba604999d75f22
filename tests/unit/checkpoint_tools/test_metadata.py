"""A checkpoint made by someone else can't run anything here."""

import os
import pickle
from dataclasses import replace

import pytest
import torch

from checkpoint_tools.megatron_folder import MegatronFolder
from checkpoint_tools.megatron_to_hf import main as megatron_to_hf
from checkpoint_tools.show import main as inspect
from megatron_nft.actor.checkpoint_metadata import read_common, read_metadata
from megatron_nft.actor.manifest import CheckpointError


class Malicious:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, torch.load, getattr], ids=lambda f: f.__name__)
def test_metadata_that_calls_something_is_refused_and_nothing_called(megatron, tmp_path, function, capsys):
    made = tmp_path / "made"
    arguments = {os.mkdir: (str(made),), eval: (f"__import__('os').mkdir({str(made)!r})",)}.get(function, ("x", "y"))
    payload = pickle.dumps(Malicious(function, *arguments))
    (megatron / ".metadata").write_bytes(payload)
    with pytest.raises(CheckpointError, match=r"\.metadata: refused, it names .* has no place"):
        read_metadata(megatron)
    for main, argv in ((inspect, [str(megatron)]), (megatron_to_hf, ["--megatron", str(megatron), "--out", "out"])):
        assert main(argv) == 1
        assert "refused, it names" in capsys.readouterr().err
    assert not made.exists()
    if function in (os.mkdir, eval):
        pickle.loads(payload)
        assert made.exists(), "without the refusal it would have been called"


def test_hidden_among_real_metadata_it_is_refused_too(megatron, tmp_path):
    metadata = read_metadata(megatron)
    metadata.planner_data = Malicious(os.mkdir, str(tmp_path / "made"))
    (megatron / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"names posix\.mkdir"):
        MegatronFolder(megatron)
    assert not (tmp_path / "made").exists()


def test_a_malicious_chunk_or_common_file_is_refused(megatron, tmp_path):
    made = tmp_path / "made"
    torch.save({"schedule": Malicious(os.mkdir, str(made))}, megatron / "common.pt")
    with pytest.raises(CheckpointError, match=r"common\.pt: refused, it names posix\.mkdir"):
        read_common(megatron)
    stored = MegatronFolder(megatron)
    tensor = stored.tensors["decoder.final_layernorm.weight"]
    torch.save(Malicious(os.mkdir, str(made)), megatron / "other")
    chunk = replace(tensor.chunks[0], file="other", start=0, length=(megatron / "other").stat().st_size)
    with pytest.raises(CheckpointError, match=r"final_layernorm\.weight in it is refused, it names posix\.mkdir"):
        stored.read(tensor, chunk)
    assert not made.exists()


@pytest.mark.parametrize("damage", [b"", b"no pickle at all", pickle.dumps({"a": 1}), "half"], ids=str)
def test_damaged_metadata_is_named(megatron, damage):
    path = megatron / ".metadata"
    path.write_bytes(path.read_bytes()[:1000] if damage == "half" else damage)
    with pytest.raises(CheckpointError, match=r"\.metadata: (refused|damaged|holds no)"):
        MegatronFolder(megatron)
