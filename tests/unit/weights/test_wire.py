"""A bucket arrives as it was sent, and a wrong one is refused with the names that are wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_nft.weights.wire import BucketManifest, WireError, read_bucket, remove_bucket, write_bucket

TENSORS = {
    "model.norm.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "lm_head.weight": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
}


def test_round_trip_keeps_names_dtypes_shapes_and_bits(tmp_path):
    manifest = write_bucket(tmp_path, 3, TENSORS)
    assert manifest.tensors == {"lm_head.weight": ("bfloat16", (1, 2)), "model.norm.weight": ("float32", (2, 3))}
    assert manifest.num_bytes == 6 * 4 + 2 * 2
    read = read_bucket(manifest)
    assert list(read) == list(manifest.tensors)
    for name, sent in TENSORS.items():
        assert read[name].dtype == sent.dtype
        assert torch.equal(read[name], sent)


def test_manifest_travels_as_json(tmp_path):
    manifest = write_bucket(tmp_path, 0, TENSORS)
    assert BucketManifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_views_tied_and_transposed_tensors_arrive_whole(tmp_path):
    flat = torch.arange(10, dtype=torch.float32)
    tensors = {"a": flat[:4], "b": flat[4:], "tied": flat[:4], "turned": flat[:6].view(2, 3).t()}
    read = read_bucket(write_bucket(tmp_path, 0, {k: v for k, v in tensors.items() if k != "turned"}))
    assert torch.equal(read["b"], flat[4:]) and torch.equal(read["tied"], flat[:4])
    read = read_bucket(write_bucket(tmp_path, 1, {"turned": tensors["turned"], "b": flat}))
    assert torch.equal(read["turned"], tensors["turned"])


def test_tensors_outlive_their_file_and_a_later_bucket_of_the_same_index(tmp_path):
    first = write_bucket(tmp_path, 0, {"w": torch.full((1000,), 1.0)})
    read = read_bucket(first)
    second = write_bucket(tmp_path, 0, {"w": torch.full((1000,), 2.0)})
    assert second.path != first.path
    remove_bucket(first)
    remove_bucket(first)
    assert read["w"].eq(1.0).all()
    assert [p.name for p in tmp_path.iterdir()] == [Path(second.path).name]


def test_wrong_names_are_listed(tmp_path):
    manifest = write_bucket(tmp_path, 0, TENSORS)
    with pytest.raises(WireError, match=r"model\.embed") as caught:
        read_bucket(
            replace(manifest, tensors={"lm_head.weight": ("bfloat16", (1, 2)), "model.embed": ("bfloat16", (1,))})
        )
    assert caught.value.missing == ("model.embed",)
    assert caught.value.unexpected == ("model.norm.weight",)


def test_wrong_dtype_or_shape_is_refused(tmp_path):
    manifest = write_bucket(tmp_path, 0, TENSORS)
    save_file({name: t.to(torch.float64) for name, t in TENSORS.items()}, manifest.path)
    with pytest.raises(WireError, match=r"lm_head.weight is \('float64', \(1, 2\)\), its manifest says \('bfloat16'"):
        read_bucket(manifest)
    save_file({name: t.flatten() for name, t in TENSORS.items()}, manifest.path)
    with pytest.raises(WireError, match=r"lm_head.weight is \('bfloat16', \(2,\)\)"):
        read_bucket(manifest)


def test_a_flipped_bit_shows_where_checksums_are_asked_for(tmp_path):
    manifest = write_bucket(tmp_path, 0, TENSORS, with_checksum=True)
    assert torch.equal(read_bucket(manifest)["lm_head.weight"], TENSORS["lm_head.weight"])
    contents = bytearray(Path(manifest.path).read_bytes())
    contents[-1] ^= 1
    Path(manifest.path).write_bytes(contents)
    with pytest.raises(WireError, match="its bytes changed on the way"):
        read_bucket(manifest)
    assert read_bucket(replace(manifest, checksum=None))


def test_missing_or_broken_file_is_refused(tmp_path):
    manifest = write_bucket(tmp_path, 0, TENSORS)
    Path(manifest.path).write_bytes(b"not safetensors")
    with pytest.raises(WireError, match="cannot read bucket"):
        read_bucket(manifest)
    remove_bucket(manifest)
    with pytest.raises(WireError, match="removed before every engine had read it"):
        read_bucket(manifest)


def test_unwritable_folder_and_empty_bucket_are_refused(tmp_path):
    with pytest.raises(WireError, match=r"give an existing folder"):
        write_bucket(tmp_path / "nowhere", 0, TENSORS)
    with pytest.raises(WireError, match="bucket 7 is empty"):
        write_bucket(tmp_path, 7, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"path": "x", "tensors": {}, "checksum": None, "more": 1},
        {"path": 1, "tensors": {}, "checksum": 1},
        {"path": "x", "tensors": [], "checksum": 1},
    ],
)
def test_wrong_manifest_is_refused(plain):
    with pytest.raises(WireError, match="bucket manifest"):
        BucketManifest.from_dict(plain)
