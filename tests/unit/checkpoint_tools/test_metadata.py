"""A checkpoint made by someone else can't run anything here."""

import io
import os
import pickle
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from checkpoint_tools.megatron_folder import MegatronFolder
from checkpoint_tools.megatron_to_hf import main as megatron_to_hf
from checkpoint_tools.show import main as inspect
from megatron_nft.actor.checkpoint_metadata import check_pickles, read_as_data, read_common, read_metadata
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


def put_object(folder, key, value):
    """An object among the tensors, as Megatron stores extra state and the like."""
    metadata = read_metadata(folder)
    path = next(iter(sorted(folder.glob("*.distcp"))))
    start = path.stat().st_size
    with path.open("ab") as file:
        torch.save(value, file)
    metadata.state_dict_metadata[key] = BytesStorageMetadata()
    metadata.storage_data[MetadataIndex(key)] = _StorageInfo(path.name, start, path.stat().st_size - start)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return path


def test_an_object_among_the_tensors_is_read_with_limits_or_refused(megatron, tmp_path):
    put_object(megatron, "random/shard_0_1", [{"cpu": torch.get_rng_state(), "tracker": {"a": torch.ones(2)}}])
    check_pickles(megatron)
    path = put_object(megatron, "mlp._extra_state/shard_0_1", [Malicious(os.mkdir, str(tmp_path / "made"))])
    with pytest.raises(CheckpointError) as refused:
        check_pickles(megatron)
    assert str(refused.value) == (
        f"{path}: mlp._extra_state/shard_0_1 in it is refused, it names posix.mkdir; was it made by someone else? Use "
        "one of a run of yours"
    )
    assert not (tmp_path / "made").exists()


def test_an_object_in_another_file_is_refused(megatron, tmp_path):
    put_object(megatron, "random/shard_0_1", [1])
    metadata = read_metadata(megatron)
    index = MetadataIndex("random/shard_0_1")
    metadata.storage_data[index] = replace(metadata.storage_data[index], relative_path="../elsewhere")
    (megatron / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"\.metadata: refused, it names '\.\./elsewhere', a file elsewhere"):
        check_pickles(megatron)


@pytest.mark.parametrize("where", ["object", "tensor", "metadata"])
def test_torch_itself_reads_with_limits_what_changes_after_the_check(megatron, tmp_path, where):
    key, made = "final/shard_0_1", tmp_path / "made"
    code = Malicious(os.mkdir, str(made))
    put_object(megatron, key, [code])
    state = {key: io.BytesIO()}
    if where == "tensor":
        key = "decoder.final_layernorm.weight"
        metadata = read_metadata(megatron)
        index = MetadataIndex(key, torch.Size([0]))
        metadata.storage_data[index] = metadata.storage_data[MetadataIndex("final/shard_0_1")]
        state = {key: torch.empty(metadata.state_dict_metadata[key].size)}
        (megatron / ".metadata").write_bytes(pickle.dumps(metadata))
    elif where == "metadata":
        metadata = read_metadata(megatron)
        metadata.planner_data = code
        (megatron / ".metadata").write_bytes(pickle.dumps(metadata))
    before = os.environ.copy(), FileSystemReader.read_metadata
    with pytest.raises(CheckpointError, match=r"refused, .* names posix\.mkdir"), read_as_data(megatron):
        checkpoint.load(state, storage_reader=FileSystemReader(megatron), no_dist=True)
    assert not made.exists() and (os.environ.copy(), FileSystemReader.read_metadata) == before
    if where != "tensor":  # which torch reads with limits anyway
        with suppress(checkpoint.CheckpointException):
            checkpoint.load(state, storage_reader=FileSystemReader(megatron), no_dist=True)
        assert made.exists(), "without the limits it would have been called"
