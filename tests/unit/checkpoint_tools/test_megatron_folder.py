"""What is wrong with a checkpoint is said before anything is written."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from checkpoint_tools import megatron_to_hf
from checkpoint_tools.megatron_folder import COMMON, MegatronFolder
from checkpoint_tools.show import describe
from megatron_nft.actor.checkpoint_metadata import FileSlice, read_metadata
from megatron_nft.actor.manifest import CheckpointError

KEY = "decoder.layers.mlp.linear_fc2.weight"


def test_chunks_are_the_layers_of_a_stacked_tensor(megatron):
    stored = MegatronFolder(megatron)
    tensor = stored.tensors[KEY]
    assert tensor.shape == (2, 32, 48) and tensor.dtype == torch.bfloat16 and tensor.num_bytes == 2 * 2 * 32 * 48
    (chunk,) = tensor.at(1)
    assert chunk.offset == (1, 0, 0) and stored.read(tensor, chunk).shape == (1, 32, 48)


def test_a_missing_and_a_short_file(megatron):
    file = megatron / "__0_0.distcp"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3000])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: [\d,]+ bytes, [\d,]+ are needed; .* copy it again"):
        MegatronFolder(megatron)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: missing; .* copy it again"):
        MegatronFolder(megatron)


def test_flipped_bytes_in_a_chunk(megatron):
    stored = MegatronFolder(megatron)
    tensor = stored.tensors[KEY]
    place = tensor.chunks[0]
    with (megatron / place.file).open("r+b") as file:
        file.seek(place.start)
        file.write(b"\xff" * 200)
    with pytest.raises(CheckpointError, match=f"{KEY} in it is (damaged|refused)"):
        stored.read(tensor, place)


def test_no_checkpoint_and_another_format(megatron, hf):
    with pytest.raises(CheckpointError, match=r"no Megatron checkpoint, .* it is an HF folder: megatron-nft evaluate"):
        MegatronFolder(hf)
    (megatron / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    with pytest.raises(CheckpointError, match="format 'zarr' is not supported; torch_dist is"):
        MegatronFolder(megatron)


def test_common_state_among_the_tensors(megatron):
    """As Megatron-Core 0.19 writes it."""
    metadata, file = read_metadata(megatron), megatron / "__0_0.distcp"
    place = replace(next(iter(metadata.storage_data.values())), relative_path=file.name, offset=file.stat().st_size)
    with file.open("ab") as end:
        torch.save([{"schedule": {"num_steps": 3}}], end)
        place.length = end.tell() - place.offset
    metadata.state_dict_metadata[COMMON] = BytesStorageMetadata()
    metadata.storage_data[MetadataIndex(COMMON)] = place
    (megatron / ".metadata").write_bytes(pickle.dumps(metadata))
    (megatron / "common.pt").unlink()
    assert MegatronFolder(megatron).read_common() == {"schedule": {"num_steps": 3}}
    assert describe(megatron)["updates"] == 3


def test_files_elsewhere_are_not_read(megatron):
    metadata = read_metadata(megatron)
    for place in metadata.storage_data.values():
        place.relative_path = "../../etc/passwd"
    (megatron / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"refused, it names '\.\./\.\./etc/passwd', a file elsewhere"):
        MegatronFolder(megatron)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 64}, r"linear_fc1\.weight is \(2, 96, 32\), by config\.json it is \(2, 128, 32\)"),
        ({"num_hidden_layers": 3}, r"is \(2, \d+, \d+\), by config\.json it is \(3, \d+, \d+\)"),
        (
            {"model_type": "qwen3", "head_dim": 8},
            r"no decoder\.layers\.self_attention\.q_layernorm\.weight; is config\.json",
        ),
        ({"vocab_size": 400}, r"embedding\.word_embeddings\.weight is \(320, 32\)"),
    ],
)
def test_a_config_of_another_model(megatron, tmp_path, change, message):
    config = megatron / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        megatron_to_hf.convert(megatron, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_save_that_was_interrupted_has_holes(megatron, tmp_path):
    metadata = read_metadata(megatron)
    del metadata.state_dict_metadata[KEY].chunks[1]
    (megatron / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=f"{KEY} of layer 1 has holes"):
        megatron_to_hf.convert(megatron, tmp_path / "out")


def test_a_slice_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb", buffering=0) as file:
        part = FileSlice(file, 2, 5)
        assert part.read(3) == b"234" and part.tell() == 3 and part.read() == b"56" and part.read() == b""
        assert part.seek(-2, 2) == 3 and part.read(100) == b"56"
